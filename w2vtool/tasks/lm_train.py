"""Train a word n-gram language model: modified Kneser-Ney, written as ARPA, no compiler needed.

Goes in: text files (``.gz`` too), one sentence a line, or manifests with transcripts. Goes out: an
ARPA file that KenLM and ``w2vtool decode --lm`` read and, if asked for, the list of its words.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from w2vtool.schema import Config, knob
from w2vtool.task import Task

if TYPE_CHECKING:
    from collections.abc import Iterator

    from w2vtool.run import Run


class LmTrainConfig(Config):
    """Text in, n-grams out."""

    text: tuple[Path, ...] = knob(doc="Text files, one sentence a line, or manifests (.jsonl).")
    out: Path = knob(doc="The ARPA file to write; .arpa.gz is compressed.")
    order: int = knob(4, "Longest n-gram.", unit="words", ge=1, le=6, source="paper §4.4")
    prune: tuple[int, ...] = knob(
        (),
        "Per order from 1 up: n-grams seen this often or less go; the last holds for the rest.",
        source="lmplz --prune",
    )
    case: Literal["upper", "lower", "keep"] = knob(
        "keep", "Case that the text is brought to; it must be that of the transcripts."
    )
    words: Path | None = knob(None, "Also write the words, one a line: a lexicon for decode.")


def lm_train(config: LmTrainConfig, run: Run) -> dict[str, Any]:
    """Read, count, smooth, write."""
    from w2vtool.decoder import lm_train as training
    from w2vtool.run import write_atomic

    ngrams = training.train(lines(config), config.order, config.prune)
    config.out.parent.mkdir(parents=True, exist_ok=True)
    training.write_arpa(ngrams, config.out)
    for note in ngrams.notes:
        run.say(note)
    words = sorted(ngrams.words[3:])
    if config.words is not None:
        config.words.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(config.words, "".join(f"{word}\n" for word in words))
    counts = dict(enumerate(ngrams.counts, start=1))
    run.table(
        f"{config.order}-gram model of {len(words)} words: {config.out}",
        ["order", "n-grams"],
        list(counts.items()),
    )
    return {"lm": str(config.out), "words": len(words), "ngrams": counts}


def lines(config: LmTrainConfig) -> Iterator[str]:
    """Sentences of all inputs, in the case asked for."""
    from w2vtool import manifest
    from w2vtool.decoder.lm_train import read_lines
    from w2vtool.text import normalize

    for path in config.text:
        if path.suffix == ".jsonl":
            source: Any = (row.text for row in manifest.read(path).rows if row.text)
        else:
            source = read_lines([path])
        for line in source:
            yield normalize(line, config.case)


TASK = Task(
    LmTrainConfig,
    lm_train,
    flags={
        "--out": "out",
        "--order": "order",
        "--prune": "prune",
        "--case": "case",
        "--words": "words",
    },
    inputs="text",
    example="w2vtool lm train recipes/data/demo/lm.txt --order 3 --out lm.arpa",
)
