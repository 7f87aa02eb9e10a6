"""Say what a language model is: its order, its n-grams, its words and the case that they are in.

Goes in: an ARPA file, a KenLM binary, or a folder that ``lm train`` made. Goes out: a table.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from w2vtool.schema import Config, knob
from w2vtool.task import Task

if TYPE_CHECKING:
    from w2vtool.run import Run

SHOWN = 40  # letters


class LmInfoConfig(Config):
    """Which model."""

    lm: Path = knob(doc="ARPA file, KenLM binary, or folder of lm train.")


def lm_info(config: LmInfoConfig, run: Run) -> dict[str, Any]:
    """Open the model and count."""
    from collections import Counter

    from w2vtool.decoder.lm import open_lm
    from w2vtool.decoder.ngram import NGram, tables

    model = open_lm(config.lm)
    words = model.vocabulary()
    letters = Counter(letter for word in words for letter in word)
    cased = [word for word in words if word.upper() != word.lower()]
    upper = sum(word == word.upper() for word in cased)
    lower = sum(word == word.lower() for word in cased)
    most = max(len(cased), 1)
    case = "upper" if upper > 0.99 * most else "lower" if lower > 0.99 * most else "mixed"
    facts: dict[str, Any] = {"order": model.order, "words": len(words), "case": case}
    if isinstance(model, NGram):
        made = tables(model)
        facts["ngrams"] = {n: len(table.word) for n, table in enumerate(made, start=1)}
        facts["memory_mb"] = round(sum(array.nbytes for array in arrays(model)) / 1e6, 1)
    shown = "".join(letter for letter, _ in letters.most_common(SHOWN))
    facts["letters"] = "".join(sorted(letters))
    rows: list[tuple[str, object]] = [
        ("order", model.order),
        ("words", f"{len(words):,}" if words else "a KenLM binary does not tell its words"),
        ("case", case if words else "–"),
        ("letters", f"{len(letters)}: {shown}{'…' if len(letters) > SHOWN else ''}"),
    ]
    rows += [(f"{n}-grams", f"{count:,}") for n, count in facts.get("ngrams", {}).items()]
    if "memory_mb" in facts:
        rows.append(("in memory", f"{facts['memory_mb']:,} MB"))
    run.table(str(config.lm), ("", ""), rows)
    return facts


def arrays(model: Any) -> list[Any]:
    """The arrays that a model holds."""
    return [value for value in vars(model).values() if hasattr(value, "nbytes")]


TASK = Task(LmInfoConfig, lm_info, inputs="lm", example="w2vtool lm info runs/demo/lm/lm.arpa")
