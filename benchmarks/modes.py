"""Decode the emissions of a trained model in every mode of the search, and report.

Goes in: a fine-tuned checkpoint, a development and a test set with transcripts (manifests or
tables), and text for the language models. Goes out: for each mode the word and letter error rates
on the test set, the error rate of the best of ten hypotheses, the mean score, milliseconds of CPU
an utterance of the numba engine, and how often the torch engine finds another text.

The language models are trained here: a 4-gram of words (``--order``), and a 6-gram of the tokens of
the checkpoint, letters or word pieces. Each mode's weights are searched for on the development set,
with a narrow beam; the test set is decoded once, with a wide one.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("OMP_NUM_THREADS", "1")
import numpy as np

from w2vtool import checkpoint, emissions, lm_texts, searching, tuning
from w2vtool.decoder import arpa_writer
from w2vtool.decoder.greedy import Hypothesis
from w2vtool.decoder.lm_train import read_lines, train
from w2vtool.device import choose
from w2vtool.schema import DataConfig, TextConfig
from w2vtool.score import Errors, letter_errors, word_errors
from w2vtool.searching import BeamConfig, Decoder, Material, SearchConfig
from w2vtool.text import Rules

BEAM = BeamConfig(width=200, threshold=21.0, token_threshold=21.0)
TUNING = BeamConfig(width=50, threshold=15.0, token_threshold=15.0)  # for the weights alone
NBEST = 10
RANGES = {
    "lm_weight": (0.0, 5.0),
    "word_score": (-4.0, 4.0),
    "unk_score": (-12.0, 0.0),
    "unk_letter_score": (-3.0, 0.0),
}


class Mode(NamedTuple):
    """A way to search: what is given, and which weights count."""

    search: searching.SearchName
    lexicon: bool = False
    lm: str = ""  # "words" or "tokens"
    weights: tuple[str, ...] = ()


MODES = {
    "greedy": Mode("greedy"),
    "CTC alone": Mode("tokens"),
    "tokens + LM": Mode("tokens", lm="tokens", weights=("lm_weight", "word_score")),
    "lexicon": Mode("lexicon", lexicon=True, weights=("word_score",)),
    "lexicon + LM": Mode("lexicon", True, "words", ("lm_weight", "word_score")),
    "open + LM": Mode("open", False, "words", tuple(RANGES)),
    "open + lexicon + LM": Mode("open", True, "words", tuple(RANGES)),
}


class Set(NamedTuple):
    """Log-probabilities of utterances, and what was said."""

    frames: list[np.ndarray]
    texts: list[str]


def heard(paths: Sequence[Path], loaded: checkpoint.Checkpoint) -> Set:
    """Run the network over what has a transcript."""
    rows = emissions.open_rows(paths, "test", DataConfig(), TextConfig())
    rows = [job for job in rows if job[1].text]
    stream = emissions.log_probabilities(rows, loaded.ctc(), device=choose("cpu"))
    found = [(logp_TV, loaded.spec.rules(row.text or "")) for row, logp_TV in stream]
    return Set([logp_TV for logp_TV, _ in found], [text for _, text in found])


def models(
    text: Sequence[Path], order: int, trained: Path, rules: Rules, work: Path
) -> dict[str, Path]:
    """Models of words and of the checkpoint's tokens, and the words; what is there is taken."""
    paths = {name: work / f"{name}.arpa" for name in ("words", "tokens")}
    paths["lexicon"] = work / "words.txt"
    if all(path.exists() for path in paths.values()):
        return paths
    lines = [line for line in map(rules, read_lines(text)) if line]
    made = train(lines, order, (0, 0, 1, 1)[:order])
    arpa_writer.write(made.words, made.tables(), paths["words"])
    paths["lexicon"].write_text("".join(f"{word}\n" for word in sorted(made.words[3:])))
    known = lm_texts.usable(trained)
    made = train(lm_texts.spelled(lines, trained), 6, (0, 0, 0, 1, 1, 1), known=known)
    arpa_writer.write(made.words, made.tables(), paths["tokens"])
    return paths


def gathered(mode: Mode, paths: dict[str, Path], loaded: checkpoint.Checkpoint) -> Material:
    """What the mode searches with."""
    assert loaded.spec.tokens is not None
    config = SearchConfig(
        search=mode.search,
        lexicon=paths["lexicon"] if mode.lexicon else None,
        lm=paths[mode.lm] if mode.lm else None,
        lm_check="warn",
    )
    return searching.gather(config, loaded.spec.tokens, loaded.spec.rules)


def errors(found: Sequence[Sequence[Hypothesis]], texts: Sequence[str]) -> tuple[Errors, Errors]:
    """Of words and of letters, of the first hypotheses."""
    words, letters = Errors(), Errors()
    for hypotheses, text in zip(found, texts, strict=True):
        words += word_errors(text, hypotheses[0].text)
        letters += letter_errors(text, hypotheses[0].text)
    return words, letters


def tuned(mode: Mode, material: Material, dev: Set, trials: int, journal: Path) -> BeamConfig:
    """The weights with the fewest errors on the development set."""
    if not mode.weights:
        return BEAM

    def evaluate(point: tuning.Point) -> tuning.Trial:
        decoder = searching.decoder(material, TUNING.model_copy(update=point), threads=2)
        return tuning.Trial(point, *errors(decoder.batch(dev.frames), dev.texts))

    ranges = [tuning.Range(name, *RANGES[name]) for name in mode.weights]
    *_, found = tuning.search(
        evaluate,
        tuning.Journal(journal, material.name),
        ranges,
        TUNING.model_dump(),
        trials=trials,
        random=max(1, trials // 2),
        seed=1,
        by="wer",
    )
    return BEAM.model_copy(update=tuning.best(found, "wer").values)


def oracle(decoder: Decoder, test: Set) -> float:
    """Word error rate in percent, if the best hypothesis of each list were known."""
    total = Errors()
    for hypotheses, text in zip(decoder.batch(test.frames), test.texts, strict=True):
        total += min((word_errors(text, h.text) for h in hypotheses), key=lambda e: e.errors)
    return 100 * total.rate


def row(mode: Mode, material: Material, beam: BeamConfig, test: Set) -> dict[str, Any]:
    """What a mode does on the test set."""
    decoder = searching.decoder(material, beam)
    decoder.batch(test.frames[:1])  # compile
    begin = time.process_time()
    found = decoder.batch(test.frames)
    spent = time.process_time() - begin
    words, letters = errors(found, test.texts)
    line: dict[str, Any] = {
        "wer": round(100 * words.rate, 2),
        "cer": round(100 * letters.rate, 2),
        "score": round(float(np.mean([h[0].score for h in found])), 4),
        "ms": round(1000 * spent / len(found), 2),
        "weights": {name: getattr(beam, name) for name in mode.weights},
    }
    if mode.search != "greedy":
        line["best_of_10"] = round(oracle(searching.decoder(material, beam, nbest=NBEST), test), 2)
        torch_beam = beam.model_copy(update={"engine": "torch"})
        other = searching.decoder(material, torch_beam).batch(test.frames)
        line["torch_differs"] = sum(
            a[0].text != b[0].text for a, b in zip(found, other, strict=True)
        )
    return line


def main() -> None:
    """Parse, run, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--dev", type=Path, nargs="+", required=True)
    parser.add_argument("--test", type=Path, nargs="+", required=True)
    parser.add_argument("--text", type=Path, nargs="+", required=True)
    parser.add_argument("--order", type=int, default=4)
    parser.add_argument("--trials", type=int, default=40)
    parser.add_argument("--work", type=Path, help="where models and trials are kept")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    loaded = checkpoint.load(arguments.checkpoint)
    dev, test = heard(arguments.dev, loaded), heard(arguments.test, loaded)
    result: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        work = arguments.work or Path(scratch)
        work.mkdir(parents=True, exist_ok=True)
        os.environ.setdefault("W2VTOOL_CACHE", str(work))
        rules = loaded.spec.rules
        paths = models(arguments.text, arguments.order, arguments.checkpoint, rules, work)
        for name, mode in MODES.items():
            material = gathered(mode, paths, loaded)
            journal = work / f"{name.replace(' ', '')}.jsonl"
            beam = tuned(mode, material, dev, arguments.trials, journal)
            result[name] = row(mode, material, beam, test)
            print(f"{name}: {result[name]}", file=sys.stderr)
    words = sum(len(text.split()) for text in test.texts)
    print(f"{len(test.texts)} utterances, {words} words")
    print(f"{'':20}{'WER %':>8}{'CER %':>8}{'of 10':>8}{'score':>10}{'ms':>8}{'differ':>8}")
    for name, line in result.items():
        best, differs = line.get("best_of_10", math.nan), line.get("torch_differs", "")
        print(
            f"{name:20}{line['wer']:8.2f}{line['cer']:8.2f}{best:8.2f}{line['score']:10.2f}"
            f"{line['ms']:8.2f}{differs:>8}"
        )
    if arguments.json:
        print(json.dumps(result))


if __name__ == "__main__":
    main()
