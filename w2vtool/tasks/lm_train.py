"""Train a word n-gram language model: modified Kneser-Ney, no compiler needed.

Goes in: text files (``.gz``, ``.bz2``, ``.xz`` too), one sentence a line, or manifests, tables
and corpora with transcripts. Goes out: a folder with the model as ARPA for other tools
(lm.arpa.gz), as arrays that load at once (lm.npz) and its words (words.txt, a lexicon for decode);
or, where ``--out`` is a file, the ARPA alone.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from w2vtool.errors import ConfigError
from w2vtool.schema import Config, knob
from w2vtool.task import Task

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from w2vtool.decoder.ngram import OrderTable
    from w2vtool.run import Run

    Model = tuple[Sequence[str], list[OrderTable], Sequence[str]]  # words, n-grams, notes

LARGE_BYTES = 550_000_000  # of text: about 100 M words, 8 GB of memory at 80 bytes a word
PACKED = {".gz": 3, ".bz2": 4, ".xz": 4}  # how much longer the text is


class LmTrainConfig(Config):
    """Text in, n-grams out."""

    text: tuple[Path, ...] = knob(
        doc="Text files, one sentence a line; or manifests, tables, corpora."
    )
    out: Path = knob(doc="Folder for the model; or the ARPA file alone (.arpa, .arpa.gz).")
    order: int = knob(4, "Longest n-gram.", unit="words", ge=1, le=9, source="paper §4.4")
    prune: tuple[int, ...] = knob(
        (),
        "Per order from 1 up: n-grams seen this often or less go; the last holds for the rest.",
        source="lmplz --prune",
    )
    case: Literal["upper", "lower", "keep"] = knob(
        "keep", "Case that the text is brought to; it must be that of the transcripts."
    )
    tokens: Path | None = knob(
        None,
        "Checkpoint, SentencePiece model or list of letters: the model is one of these tokens, for "
        "decode --search tokens.",
    )
    words: Path | None = knob(None, "Also write the words, one a line: a lexicon for decode.")
    estimator: Literal["auto", "numpy", "lmplz"] = knob(
        "auto",
        "What counts and smooths; auto is numpy, and KenLM's lmplz for text of over 550 MB where "
        "it is installed.",
    )


def lm_train(config: LmTrainConfig, run: Run) -> dict[str, Any]:
    """Read, count, smooth, write. A signal ends it at once: nothing can be resumed."""
    import tempfile

    from w2vtool.decoder import lm_folder

    check(config)
    folder = config.out.parent if lm_folder.is_file(config.out) else config.out
    estimate = with_lmplz if by_lmplz(config) else with_numpy
    with filled(folder):  # made first, so that one that cannot be written costs no work
        with tempfile.TemporaryDirectory(dir=folder, prefix=".lm-train-") as scratch:
            words, tables, notes = estimate(config, Path(scratch), run)
        for note in notes:
            run.say(note)
        counts = {n: len(table.word) for n, table in enumerate(tables, start=1)}
        with run.progress(sum(counts.values()), f"writing {config.out}", "n-grams") as bar:
            listed = lm_folder.write(config.out, words, tables, bar.update)
    if config.words:
        lm_folder.write_words(config.words, listed)
    unit = "tokens" if config.tokens else "words"
    run.table(
        f"{config.order}-gram model of {len(listed)} {unit}: {config.out}",
        ["order", "n-grams"],
        list(counts.items()),
    )
    return {"lm": str(config.out), "words": len(listed), "ngrams": counts}


@contextlib.contextmanager
def filled(folder: Path) -> Iterator[None]:
    """Make a folder, which goes again if nothing has come into it at the end."""
    from w2vtool.run import make_folder

    new = not folder.exists()
    make_folder(folder, "--out")
    try:
        yield
    finally:
        if new:
            with contextlib.suppress(OSError):  # what is in use stays
                folder.rmdir()


def check(config: LmTrainConfig) -> None:
    """Raise ConfigError for thresholds that came as texts: lmplz writes ``--prune 0 0 1``."""
    numbers = [path.name for path in config.text if path.name.isdigit() and not path.exists()]
    if config.prune and numbers:
        together = ",".join([*map(str, config.prune), *numbers])
        raise ConfigError(
            f"no texts: {' '.join(numbers)}",
            where="lm train",
            hint=f"thresholds stand together: --prune {together}",
        )


def with_numpy(config: LmTrainConfig, folder: Path, run: Run) -> Model:
    """Estimate here."""
    from w2vtool import lm_texts
    from w2vtool.decoder import lm_train as training

    with run.progress(1 + 2 * config.order, "training", "stages") as bar:
        done = 0

        def on_stage(stage: str) -> None:
            nonlocal done
            done += 1
            bar.update(done, stage=stage)

        known = lm_texts.usable(config.tokens) if config.tokens else ()
        ngrams = training.train(lines(config), config.order, config.prune, on_stage, known)
    return ngrams.words, ngrams.tables(), ngrams.notes


def by_lmplz(config: LmTrainConfig) -> bool:
    """Whether lmplz does it. Raises ConfigError where it is asked for and not installed."""
    import shutil

    if config.estimator == "numpy":
        return False
    size = sum(
        path.stat().st_size * PACKED.get(path.suffix, 1) for path in config.text if path.exists()
    )
    if config.estimator == "auto" and size < LARGE_BYTES:
        return False
    found = shutil.which("lmplz") is not None
    if not found and config.estimator == "lmplz":
        hint = "install KenLM with its programs, or estimator=numpy"
        raise ConfigError("estimator: lmplz, and there is no lmplz in PATH", hint=hint)
    return found


def with_lmplz(config: LmTrainConfig, folder: Path, run: Run) -> Model:
    """Let KenLM's program estimate, and read what it wrote."""
    from w2vtool.decoder import lm, lmplz
    from w2vtool.decoder.ngram import NGram, tables

    with run.progress(lmplz.STEPS, "training by lmplz", "steps") as bar:
        made = lmplz.estimate(lines(config), config.order, config.prune, folder, bar.update)
    arpa, notes = made
    model = lm.open_lm(arpa)
    arpa.unlink()
    assert isinstance(model, NGram)
    return model.words, tables(model), notes


def lines(config: LmTrainConfig) -> Iterator[str]:
    """Sentences of all inputs, in the case asked for; in tokens, if these are asked for."""
    from w2vtool import lm_texts

    texts = lm_texts.sentences(config.text, config.case)
    yield from texts if config.tokens is None else lm_texts.spelled(texts, config.tokens)


TASK = Task(
    LmTrainConfig,
    lm_train,
    flags={
        "--out": "out",
        "--order": "order",
        "--prune": "prune",
        "--case": "case",
        "--tokens": "tokens",
        "--words": "words",
    },
    inputs="text",
    example="w2vtool lm train recipes/data/demo/lm.txt --order 3 --out lm",
)
