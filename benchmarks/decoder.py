"""Time and judge beam searches on the same log-probabilities: ours, flashlight's, pyctcdecode's.

Goes in: a job (``--job``): ``dev.npz`` and ``test.npz`` with ``logp`` (N, T, V) and ``lens``, their
texts ``dev.txt`` and ``test.txt``, ``vocab.json``, ``lexicon.txt`` and the text for the language
model, ``corpus.txt`` or ``corpus.txt.xz``. Goes out: word error rate, mean score, milliseconds of
CPU an utterance, memory and load time of every side; with ``--json`` also one line at the end.

The 4-gram is trained here; weights are tuned on dev, with our search, and are the same for all that
have the same score. The sides take turns, one thread each. ``--quick`` takes 20 utterances.
"""

from __future__ import annotations

import argparse
import json
import lzma
import math
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("OMP_NUM_THREADS", "1")
import numpy as np

from w2vtool.decoder import lexicon as lexicons
from w2vtool.decoder.beam import BeamOptions, Search
from w2vtool.decoder.lm import open_lm
from w2vtool.decoder.lm_train import train, write_arpa
from w2vtool.score import Errors, word_errors
from w2vtool.text import WORD_END
from w2vtool.tokens import Tokens

Decode = Callable[[Sequence[np.ndarray]], list[tuple[str, float]]]  # texts and scores
WIDE = {"beam": 150, "threshold": 20.0, "token_threshold": 20.0}
NARROW = {"beam": 50, "threshold": 15.0, "token_threshold": 15.0}
ROUNDS = 2
SIDES = ("ours_numba", "ours_torch", "ours_open", "flashlight_50", "flashlight_500")
SIDES += ("flashlight_1500", "pyctcdecode")


class Job(NamedTuple):
    """What is decoded, and with what."""

    folder: Path
    arpa: Path
    tokens: Tokens
    lexicon: lexicons.Lexicon

    def split(self, name: str) -> tuple[list[np.ndarray], list[str]]:
        """Log-probabilities of utterances, and what was said."""
        with np.load(self.folder / f"{name}.npz") as found:
            logp, lengths = found["logp"], found["lens"]
        texts = (self.folder / f"{name}.txt").read_text().split("\n")
        frames = [np.ascontiguousarray(x[:n]) for x, n in zip(logp, lengths, strict=True)]
        return frames, texts[: len(frames)]


def open_job(folder: Path, work: Path) -> Job:
    """Read the job; train its language model if ``work`` has none."""
    vocabulary = json.loads((folder / "vocab.json").read_text())
    symbols = sorted(vocabulary, key=vocabulary.get) if isinstance(vocabulary, dict) else vocabulary
    tokens = Tokens(tuple(symbols))
    arpa = work / "lm.arpa"
    if not arpa.exists():
        text = folder / "corpus.txt.xz"
        begin = time.perf_counter()
        with lzma.open(text, "rt") if text.exists() else text.with_suffix("").open() as lines:
            write_arpa(train(lines, 4), arpa)
        print(f"trained a 4-gram in {time.perf_counter() - begin:.1f} s", file=sys.stderr)
    return Job(folder, arpa, tokens, lexicons.read(folder / "lexicon.txt", tokens))


@contextmanager
def quiet() -> Iterator[None]:
    """KenLM writes its progress to stderr."""
    saved = os.dup(2)
    with Path(os.devnull).open("wb") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)


def ours(
    job: Job, engine: str, weights: dict[str, float], threads: int = 1, **given: Any
) -> Decode:
    """Our search, compiled and warm."""
    options = BeamOptions(**given, **weights)
    search = Search(
        job.tokens,
        job.lexicon,
        open_lm(job.arpa),
        options,
        engine=engine,
        threads=threads,  # type: ignore[arg-type]
    )
    search(np.full((3, len(job.tokens)), -3.0))
    return lambda frames: [(h[0].text, h[0].score) for h in search.batch(frames)]


def flashlight(job: Job, beam: int, weights: dict[str, float]) -> Decode:
    """flashlight-text, with all tokens tried and its usual threshold."""
    from flashlight.lib.text import decoder as fl
    from flashlight.lib.text.decoder.kenlm import KenLM
    from flashlight.lib.text.dictionary import create_word_dict

    words = create_word_dict({word: [[]] for word in (*job.lexicon.words, "<unk>")})
    with quiet():
        model = KenLM(str(job.arpa), words)
    separator = job.tokens.symbols.index(WORD_END)
    trie = fl.Trie(len(job.tokens), separator)
    for word, spelling in zip(*job.lexicon, strict=True):
        index = words.get_index(word)
        trie.insert(list(spelling), index, model.score(model.start(False), index)[1])
    trie.smear(fl.SmearingMode.MAX)
    options = fl.LexiconDecoderOptions(
        beam_size=beam,
        beam_size_token=len(job.tokens),
        beam_threshold=25.0,
        lm_weight=weights["lm_weight"],
        word_score=weights["word_score"],
        unk_score=-math.inf,
        sil_score=0.0,
        log_add=False,
        criterion_type=fl.CriterionType.CTC,
    )
    unknown = words.get_index("<unk>")
    search = fl.LexiconDecoder(
        options, trie, model, separator, job.tokens.blank, unknown, [], False
    )

    def one(logp_TV: np.ndarray) -> tuple[str, float]:
        logp_TV = np.ascontiguousarray(logp_TV, np.float32)
        best = search.decode(logp_TV.ctypes.data, *logp_TV.shape)[0]
        return " ".join(words.get_entry(w) for w in best.words if w >= 0), best.score

    return lambda frames: [one(logp_TV) for logp_TV in frames]


def pyctcdecode(job: Job) -> Decode:
    """Pyctcdecode with its defaults; its score is another one."""
    import pyctcdecode as theirs

    labels = ["" if i == job.tokens.blank else s for i, s in enumerate(job.tokens.symbols)]
    labels = [" " if s == WORD_END else s for s in labels]
    with quiet():
        search = theirs.build_ctcdecoder(
            labels, str(job.arpa), list(dict.fromkeys(job.lexicon.words)), alpha=0.65, beta=2.0
        )
    return lambda frames: [(search.decode(logp_TV), math.nan) for logp_TV in frames]


def make(job: Job, side: str, weights: dict[str, dict[str, float]]) -> Decode:
    """A side by its name."""
    if side.startswith("flashlight"):
        return flashlight(job, int(side.rpartition("_")[2]), weights["closed"])
    if side == "pyctcdecode":
        return pyctcdecode(job)
    if side == "ours_open":
        return ours(job, "numba", weights["open"], mode="open", **NARROW)
    return ours(job, side.removeprefix("ours_"), weights["closed"], **WIDE)


def wer(found: Sequence[tuple[str, float]], texts: Sequence[str]) -> float:
    """Word error rate in percent."""
    pairs = zip(texts, found, strict=True)
    errors = sum((word_errors(said, text) for said, (text, _) in pairs), Errors())
    return 100 * errors.rate


def tune(job: Job) -> dict[str, dict[str, float]]:
    """Weights with the fewest errors on dev, one after another on a coarse grid."""
    frames, texts = job.split("dev")
    found = {}
    grids: dict[str, dict[str, Sequence[float]]] = {
        "closed": {"lm_weight": (1.5, 2.0, 2.5), "word_score": (-1.0, 0.0, 1.0)},
        "open": {
            "lm_weight": (1.5, 2.0, 2.5),
            "unk_score": (-7.0, -5.0, -3.0),
            "unk_letter_score": (-1.5, -1.0, -0.5),
        },
    }
    for mode, grid in grids.items():
        best = {"lm_weight": 2.0, "word_score": 0.0}
        best |= {"unk_score": -5.0, "unk_letter_score": -1.0} if mode == "open" else {}
        given = {"mode": "open"} if mode == "open" else {}
        rate = wer(ours(job, "numba", best, **NARROW, **given)(frames), texts)
        for name, values in grid.items():
            for value in values:
                tried = {**best, name: value}
                now = wer(ours(job, "numba", tried, **NARROW, **given)(frames), texts)
                if now < rate:
                    best, rate = tried, now
        found[mode] = best
        print(f"{mode}: {best}, {rate:.2f} % on dev", file=sys.stderr)
    return found


def load(arguments: argparse.Namespace, work: Path, weights: dict[str, Any], side: str) -> Any:
    """Seconds and megabytes that a side takes to load, alone in a process."""
    command = [sys.executable, __file__, "--job", str(arguments.job), "--work", str(work)]
    command += ["--load", side, "--weights", json.dumps(weights)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def loaded(job: Job, side: str, weights: dict[str, Any]) -> dict[str, float]:
    """What ``load`` asks for, in its process."""
    if side == "ours_torch":
        import torch  # not part of the search's own memory

        torch.set_num_threads(1)
    before = resident()
    begin = time.perf_counter()
    kept = make(job, side, weights)
    spent = time.perf_counter() - begin
    grown = resident() - before
    del kept
    return {"load_s": round(spent, 3), "memory_mb": round(grown, 1)}


def resident() -> float:
    """Megabytes of the process in memory, where Linux tells; the most ever elsewhere."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return pages * resource.getpagesize() / 2**20


def race(job: Job, sides: dict[str, Decode], utterances: int) -> dict[str, dict[str, float]]:
    """All sides over the test set, by turns, ``ROUNDS`` times."""
    frames, texts = (part[:utterances] for part in job.split("test"))
    found: dict[str, list[tuple[str, float]]] = {side: [] for side in sides}
    spent = dict.fromkeys(sides, 0.0)
    for _ in range(ROUNDS):
        for side, decode in sides.items():
            start = time.process_time()
            found[side] = decode(frames)
            spent[side] += time.process_time() - start
    return {
        side: {
            "wer": round(wer(found[side], texts), 3),
            "objective": round(float(np.mean([score for _, score in found[side]])), 4),
            "ms": round(1000 * spent[side] / utterances / ROUNDS, 3),
        }
        for side in sides
    }


def threads(job: Job, weights: dict[str, float], utterances: int) -> float:
    """How much faster two threads are than one, in wall time."""
    frames = job.split("test")[0][:utterances]
    sides = [ours(job, "numba", weights, threads=n, **WIDE) for n in (1, 2)]
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(5):
        for decode, spent in zip(sides, times, strict=True):
            begin = time.perf_counter()
            decode(frames)
            spent.append(time.perf_counter() - begin)
    return round(float(np.median(np.array(times[0]) / np.array(times[1]))), 2)


def importable(side: str) -> bool:
    """Whether a side's package is there; told if not."""
    from importlib.util import find_spec

    package = {"pyctcdecode": "pyctcdecode", "ours_torch": "torch"}.get(side, "numba")
    package = "flashlight" if side.startswith("flashlight") else package
    if find_spec(package) is None:
        print(f"{side}: left out, {package} is not installed", file=sys.stderr)
    return find_spec(package) is not None


def main() -> None:
    """Parse, run, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--job", type=Path, required=True)
    parser.add_argument("--work", type=Path, help="where the language model is kept")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--weights", type=json.loads, help=argparse.SUPPRESS)
    parser.add_argument("--load", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        work = arguments.work or Path(scratch)
        work.mkdir(parents=True, exist_ok=True)
        os.environ.setdefault("W2VTOOL_CACHE", str(work))
        job = open_job(arguments.job, work)
        if arguments.load:
            print(json.dumps(loaded(job, arguments.load, arguments.weights)))
            return
        import torch

        torch.set_num_threads(1)
        weights = arguments.weights or tune(job)
        utterances = 20 if arguments.quick else len(job.split("test")[0])
        names = [side for side in SIDES if importable(side)]
        result = race(job, {side: make(job, side, weights) for side in names}, utterances)
        for side in names:
            result[side] |= load(arguments, work, weights, side)
        scaling = threads(job, weights["closed"], utterances)
    print(f"{'':16}{'WER %':>8}{'objective':>12}{'ms':>9}{'load s':>8}{'MB':>7}")
    for side, row in result.items():
        print(
            f"{side:16}{row['wer']:8.2f}{row['objective']:12.3f}{row['ms']:9.2f}"
            f"{row['load_s']:8.2f}{row['memory_mb']:7.0f}"
        )
    print(f"two threads: {scaling} x")
    if arguments.json:
        extra = {"utterances": utterances, "threads_2": scaling, "weights": weights}
        print(json.dumps({**result, **extra}).replace("NaN", "null"))


if __name__ == "__main__":
    main()
