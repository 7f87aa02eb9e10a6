"""Train a word n-gram language model: modified Kneser-Ney, no compiler needed.

Goes in: text files (``.gz`` too), one sentence a line, or manifests with transcripts. Goes out: a
folder with the model as ARPA for other tools (lm.arpa.gz), as arrays that load at once (lm.npz) and
its words (words.txt, a lexicon for decode); or, where ``--out`` is a file, the ARPA alone.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from w2vtool.errors import ConfigError, DataError, Stopped
from w2vtool.schema import Config, knob
from w2vtool.task import Task

if TYPE_CHECKING:
    from collections.abc import Iterator

    from w2vtool.decoder.ngram import NGram
    from w2vtool.run import Run

LARGE_BYTES = 550_000_000  # of text: about 100 M words, 8.5 GB of memory at 85 bytes a word


class LmTrainConfig(Config):
    """Text in, n-grams out."""

    text: tuple[Path, ...] = knob(doc="Text files, one sentence a line, or manifests (.jsonl).")
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
    words: Path | None = knob(None, "Also write the words, one a line: a lexicon for decode.")
    estimator: Literal["auto", "numpy", "lmplz"] = knob(
        "auto",
        "What counts and smooths; auto is numpy, and KenLM's lmplz for text of over 550 MB where "
        "it is installed.",
    )


def lm_train(config: LmTrainConfig, run: Run) -> dict[str, Any]:
    """Read, count, smooth, write."""
    from w2vtool.decoder import lm
    from w2vtool.run import write_atomic

    alone = config.out.name.endswith((".arpa", ".arpa.gz"))
    arpa = config.out if alone else config.out / lm.ARPA
    arpa.parent.mkdir(parents=True, exist_ok=True)
    estimate = with_lmplz if by_lmplz(config) else with_numpy
    model = estimate(config, arpa, run)
    words = sorted(model.vocabulary())
    lists = [path for path in (config.words, None if alone else config.out / lm.WORDS) if path]
    for path in lists:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, "".join(f"{word}\n" for word in words))
    if not alone:
        model.save(config.out / lm.TENSORS)
    counts = {n: len(t.word) for n, t in enumerate(tables(model), start=1)}
    run.table(
        f"{config.order}-gram model of {len(words)} words: {config.out}",
        ["order", "n-grams"],
        list(counts.items()),
    )
    return {"lm": str(config.out), "words": len(words), "ngrams": counts}


def tables(model: NGram) -> list[Any]:
    """The n-grams of a model by order."""
    from w2vtool.decoder.lm_prune import tables

    return tables(model)


def with_numpy(config: LmTrainConfig, arpa: Path, run: Run) -> NGram:
    """Estimate here."""
    from w2vtool.decoder import arpa_writer
    from w2vtool.decoder import lm_train as training
    from w2vtool.decoder.ngram import assemble

    stages = 1 + 2 * config.order
    with run.progress(stages, "training", "stages") as bar:
        done = 0

        def on_stage(stage: str) -> None:
            nonlocal done
            done += 1
            bar.update(done, stage=stage)
            if run.stop.signal is not None:
                raise Stopped(run.stop.signal)

        ngrams = training.train(lines(config), config.order, config.prune, on_stage)
    for note in ngrams.notes:
        run.say(note)
    words, made, total = ngrams.words, ngrams.tables(), sum(ngrams.counts)
    del ngrams  # as large as all that follows
    with run.progress(total, f"writing {arpa.name}", "n-grams") as bar:
        arpa_writer.write(words, made, arpa, bar.update)
    return assemble(words, made, arpa)


def by_lmplz(config: LmTrainConfig) -> bool:
    """Whether lmplz does it. Raises ConfigError where it is asked for and not installed."""
    import shutil

    if config.estimator == "numpy":
        return False
    size = sum(path.stat().st_size for path in config.text if path.exists())
    if config.estimator == "auto" and size < LARGE_BYTES:
        return False
    found = shutil.which("lmplz") is not None
    if not found and config.estimator == "lmplz":
        hint = "install KenLM with its programs, or estimator=numpy"
        raise ConfigError("estimator: lmplz, and there is no lmplz in PATH", hint=hint)
    return found


def with_lmplz(config: LmTrainConfig, arpa: Path, run: Run) -> NGram:
    """Let KenLM's program estimate, and read what it wrote."""
    import subprocess
    import tempfile

    from w2vtool.decoder import arpa_writer, lm
    from w2vtool.decoder.lm_prune import tables
    from w2vtool.decoder.ngram import NGram

    prune = ["--prune", *map(str, config.prune)] if config.prune else []
    with tempfile.TemporaryDirectory(dir=arpa.parent, prefix=".lmplz-") as folder:
        text, raw = Path(folder) / "text", Path(folder) / "lm.arpa"
        command = ["lmplz", "-o", str(config.order), "--discount_fallback", "-T", folder]
        command += [
            "--text",
            str(text),
            "--arpa",
            str(raw),
            *(["--prune", *prune] if prune else []),
        ]
        with text.open("w", encoding="utf-8") as file:
            file.writelines(f"{line}\n" for line in lines(config))
        run.say(" ".join(command))
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise DataError(f"lmplz failed ({last})", hint="estimator=numpy")
        model = lm.open_lm(raw)
        assert isinstance(model, NGram)
        arpa_writer.write(model.words, tables(model), arpa)
    return model


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
    example="w2vtool lm train recipes/data/demo/lm.txt --order 3 --out lm",
)
