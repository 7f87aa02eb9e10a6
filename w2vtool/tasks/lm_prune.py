"""Make a language model smaller: n-grams go that hardly change what it predicts.

Goes in: an ARPA file, or a folder that ``lm train`` made. Goes out: a smaller one, in either form.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from w2vtool.errors import ConfigError
from w2vtool.schema import Config, knob
from w2vtool.task import Task

if TYPE_CHECKING:
    from w2vtool.run import Run


class LmPruneConfig(Config):
    """Which model, and how much of it."""

    lm: Path = knob(doc="ARPA file, or folder of lm train.")
    out: Path = knob(doc="Folder for the smaller model; or the ARPA file alone (.arpa, .arpa.gz).")
    threshold: float = knob(
        1e-8,
        "An n-gram goes if the perplexity of the model's own predictions rises by less than this "
        "share without it.",
        gt=0,
        source="Stolcke 1998; ngram -prune of SRILM",
    )


def prune(config: LmPruneConfig, run: Run) -> dict[str, Any]:
    """Read, leave out, write. A signal ends it at once: nothing can be resumed."""
    from w2vtool.decoder import lm, lm_folder, lm_prune
    from w2vtool.decoder.ngram import NGram

    model = lm.open_lm(config.lm)
    if not isinstance(model, NGram):
        raise ConfigError(
            "a KenLM binary does not tell its n-grams", where=str(config.lm), hint="give the ARPA"
        )
    with run.progress(model.order - 1, "pruning", "orders") as bar:
        found, before = lm_prune.prune(model, config.threshold, bar.update)
    after = [len(table.word) for table in found]
    with run.progress(sum(after), f"writing {config.out}", "n-grams") as bar:
        lm_folder.write(config.out, model.words, found, bar.update)
    rows = [(n, f"{b:,}", f"{a:,}") for n, (b, a) in enumerate(zip(before, after, strict=True), 1)]
    run.table(f"pruned at {config.threshold:g}: {config.out}", ("order", "before", "after"), rows)
    return {"lm": str(config.out), "before": before, "after": after}


TASK = Task(
    LmPruneConfig,
    prune,
    flags={"--out": "out", "--threshold": "threshold"},
    inputs="lm",
    example="w2vtool lm prune runs/demo/lm/lm.arpa --threshold 1e-7 --out small",
)
