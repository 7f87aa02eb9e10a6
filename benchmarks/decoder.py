"""Time and judge beam searches on the same log-probabilities: ours, flashlight's, pyctcdecode's.

Goes in: a job (``--job``): ``dev.npz`` and ``test.npz`` with ``logp`` (N, T, V) and ``lens``, their
texts ``dev.txt`` and ``test.txt``, ``vocab.json``, ``lexicon.txt`` and the text for the language
model, ``corpus.txt`` or ``corpus.txt.xz``; without one, a job is made up. Goes out: word error
rate, mean score, milliseconds an utterance, memory and load time of every side; with ``--json``
also one line at the end. A side that cannot run is null there, and a line says what to do.

The 4-gram is trained here. Weights, beam and threshold are chosen on dev, by rules. The sides are
processes of one thread each and take turns; every figure is the median of the rounds.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import lzma
import math
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from decoder_made import Made, make  # noqa: E402
from decoder_peers import Absent, Worker, interpreter  # noqa: E402

from w2vtool.decoder import arpa_writer  # noqa: E402
from w2vtool.decoder import lexicon as lexicons  # noqa: E402
from w2vtool.decoder.lm_train import train  # noqa: E402
from w2vtool.score import Errors, word_errors  # noqa: E402
from w2vtool.tokens import Tokens  # noqa: E402

Options = dict[str, Any]
WIDTHS = ((50, 18.0), (100, 20.0), (150, 21.0), (200, 21.0), (200, 22.0), (500, 25.0))
OPEN_WIDTHS = ((30, 12.0), (50, 15.0), (50, 18.0), (100, 20.0))
WITHIN = 0.02  # of the mean score of the widest search on dev
GRIDS: dict[str, dict[str, Sequence[float]]] = {
    "lexicon": {"lm_weight": (1.5, 2.0, 2.5), "word_score": (-1.0, 0.0, 1.0)},
    "open": {
        "lm_weight": (1.5, 2.0, 2.5),
        "unk_score": (-7.0, -5.0, -3.0),
        "unk_letter_score": (-1.5, -1.0, -0.5),
    },
}
PYCTCDECODE = {"alpha": 0.5, "beta": 1.5}  # its defaults
ALPHAS, BETAS = (0.5, 0.65, 0.8, 0.95, 1.1), (0.0, 1.0, 1.5, 2.0, 3.0)
ROUNDS, THREAD_ROUNDS = 3, 9
QUICK = 20  # utterances
SIDES = (
    *("ours_numba", "ours_torch", "ours_open", "flashlight_50", "flashlight_500"),
    *("flashlight_1500", "pyctcdecode", "pyctcdecode_defaults"),
)
ALL = 10**9  # utterances


class Job(NamedTuple):
    """What is decoded, and with what."""

    folder: Path
    arpa: Path
    tokens: Tokens
    lexicon: lexicons.Lexicon

    def texts(self, part: str) -> list[str]:
        """What was said in dev or test."""
        return (self.folder / f"{part}.txt").read_text().rstrip("\n").split("\n")

    def task(self) -> dict[str, Any]:
        """What a worker needs to know."""
        return {
            "folder": str(self.folder),
            "arpa": str(self.arpa),
            "symbols": self.tokens.symbols,
            "blank": self.tokens.blank,
            "words": self.lexicon.words,
            "spellings": self.lexicon.spellings,
        }


def open_job(folder: Path, work: Path) -> Job:
    """Read the job; train its language model if ``work`` has none of this text."""
    vocabulary = json.loads((folder / "vocab.json").read_text())
    if isinstance(vocabulary, dict):
        vocabulary = sorted(vocabulary, key=vocabulary.__getitem__)
    tokens = Tokens(tuple(vocabulary))
    packed = (folder / "corpus.txt.xz").exists()
    text = folder / ("corpus.txt.xz" if packed else "corpus.txt")
    with text.open("rb") as file:
        arpa = work / f"{hashlib.file_digest(file, 'sha256').hexdigest()[:16]}.arpa"
    if not arpa.exists():
        begin = time.perf_counter()
        with lzma.open(text, "rt") if packed else text.open() as lines:
            made = train(lines, 4)
        arpa_writer.write(made.words, made.tables(), arpa)
        say(f"trained a 4-gram in {time.perf_counter() - begin:.1f} s")
    return Job(folder, arpa, tokens, lexicons.read(folder / "lexicon.txt", tokens))


def say(line: str) -> None:
    """Progress, and what a person should know."""
    print(line, file=sys.stderr, flush=True)


def wer(found: Sequence[tuple[str, float]], texts: Sequence[str]) -> float:
    """Word error rate in percent."""
    pairs = zip(texts, found, strict=True)
    errors = sum((word_errors(said, text) for said, (text, _) in pairs), Errors())
    return 100 * errors.rate


def mean_score(found: Sequence[tuple[str, float]]) -> float | None:
    """The mean objective, where a side tells it."""
    mean = sum(score for _, score in found) / len(found)
    return None if math.isnan(mean) else mean


def width(beam: int, threshold: float) -> Options:
    """How wide a search is, as options."""
    return {"beam": beam, "threshold": threshold, "token_threshold": threshold}


class Tuner:
    """Choices on dev, by our search."""

    def __init__(self, worker: Worker, texts: Sequence[str]) -> None:
        self._worker, self._texts = worker, texts

    def closed(self) -> Options:
        """Weights with the fewest errors, then the narrowest search as good as the widest."""
        chosen = self._weights({"mode": "lexicon", "lm_weight": 2.0, "word_score": 0.0})
        *narrower, widest = WIDTHS
        limit = self._score(chosen, widest) - WITHIN
        say(f"lexicon: the widest search, {widest}, has a score of {limit + WITHIN:.4f} on dev")
        for tried in narrower:
            score = self._score(chosen, tried)
            say(f"lexicon: beam and threshold {tried}: {score:.4f}")
            if score >= limit:
                return {**chosen, **width(*tried)}
        return {**chosen, **width(*widest)}

    def open(self) -> Options:
        """Weights and width with the fewest errors; of equal ones the narrowest."""
        weights = {"lm_weight": 2.0, "word_score": 0.0, "unk_score": -5.0, "unk_letter_score": -1.0}
        chosen = self._weights({"mode": "open", **weights})
        rates = {tried: self._rate({**chosen, **width(*tried)}) for tried in OPEN_WIDTHS}
        say("open: " + ", ".join(f"{tried} {rate:.2f} %" for tried, rate in rates.items()))
        return {**chosen, **width(*min(rates, key=lambda tried: rates[tried]))}

    def _weights(self, best: Options) -> Options:
        """One weight after another on a coarse grid, with a narrow beam, which costs least."""
        narrow = width(50, 15.0)
        rate = self._rate({**best, **narrow})
        for name, values in GRIDS[best["mode"]].items():
            for value in values:
                tried = {**best, name: value}
                now = self._rate({**tried, **narrow})
                if now < rate:
                    best, rate = tried, now
        say(f"{best}: {rate:.2f} % on dev")
        return best

    def _rate(self, options: Options) -> float:
        return wer(self._worker.decode(options, "dev", ALL).found, self._texts)

    def _score(self, options: Options, tried: tuple[int, float]) -> float:
        found = self._worker.decode({**options, **width(*tried)}, "dev", ALL).found
        return mean_score(found) or 0.0


def tune_pyctcdecode(worker: Worker, texts: Sequence[str]) -> Options:
    """Its two weights with the fewest errors on dev."""
    rates = {}
    for alpha in ALPHAS:
        for beta in BETAS:
            found = worker.decode({"alpha": alpha, "beta": beta}, "dev", ALL).found
            rates[alpha, beta] = wer(found, texts)
    alpha, beta = min(rates, key=lambda pair: rates[pair])
    say(f"pyctcdecode: alpha {alpha}, beta {beta}, {rates[alpha, beta]:.2f} % on dev")
    return {"alpha": alpha, "beta": beta}


class Race:
    """The sides that run, each with its process and its options."""

    def __init__(self, stack: ExitStack, start: Callable[..., Worker]) -> None:
        self._stack, self.start = stack, start
        self._workers: dict[str, Worker] = {}
        self.sides: dict[str, tuple[Worker, Options]] = {}

    def worker(self, name: str, program: str, options: Options) -> Worker:
        """A process, started once for each name. Raises Absent."""
        if name not in self._workers:
            self._workers[name] = self._stack.enter_context(self.start(program, options))
        return self._workers[name]

    def add(self, side: str, program: str, options: Options, shared: bool = False) -> None:
        """A side; ``shared`` are those of one process. One that cannot run is named."""
        try:
            worker = self.worker(program if shared else side, program, options)
        except Absent as absent:
            say(f"{side}: left out: {absent}")
            return
        self.sides[side] = worker, options
        say(f"{side}: loaded in {worker.loading['load_s']:.1f} s")

    def run(self, texts: Sequence[str]) -> dict[str, dict[str, Any]]:
        """All sides over the first of the test set, by turns."""
        spent: dict[str, list[tuple[float, float]]] = {side: [] for side in self.sides}
        rows: dict[str, dict[str, Any]] = {}
        for number in range(ROUNDS):
            for side, (worker, options) in list(self.sides.items()):
                try:
                    answer = worker.decode(options, "test", len(texts))
                except Absent as absent:
                    say(f"{side}: ended: {absent}")
                    del self.sides[side]
                    continue
                cpu, wall = (1000 * s / len(texts) for s in (answer.cpu_s, answer.wall_s))
                spent[side].append((cpu, wall))
                say(f"round {number + 1} of {ROUNDS}: {side} {cpu:.2f} ms")
                score = mean_score(answer.found)
                rows[side] = {
                    "wer": round(wer(answer.found, texts), 3),
                    "objective": None if score is None else round(score, 4),
                }
        return {side: rows[side] | self._figures(side, spent) for side in self.sides}

    def _figures(self, side: str, spent: dict[str, list[tuple[float, float]]]) -> dict[str, Any]:
        """Medians of the rounds, and what loading took."""
        found: dict[str, Any] = {
            "ms": round(median(cpu for cpu, _ in spent[side]), 3),
            "wall_ms": round(median(wall for _, wall in spent[side]), 3),
        }
        if "flashlight_1500" in self.sides:
            pairs = zip(spent["flashlight_1500"], spent[side], strict=True)
            found["speed"] = round(median(theirs / cpu for (theirs, _), (cpu, _) in pairs), 2)
        return found | self.sides[side][0].loading

    def threads(self, utterances: int) -> float | None:
        """How much faster two threads are than one, by the clock."""
        if "ours_numba" not in self.sides:
            return None
        worker, options = self.sides["ours_numba"]
        ratios = []
        for _ in range(THREAD_ROUNDS):
            one, two = (
                worker.decode({**options, "threads": n}, "test", utterances).wall_s for n in (1, 2)
            )
            ratios.append(one / two)
        return round(median(ratios), 2)


def choose(race: Race, job: Job, wanted: Sequence[str]) -> dict[str, Options]:
    """What is chosen on dev, for the sides that are wanted."""
    texts = job.texts("dev")
    chosen: dict[str, Options] = {}
    needs = {"open": "ours_open" in wanted}
    needs["closed"] = any(side.startswith(("ours_n", "ours_t", "flashlight")) for side in wanted)
    if any(needs.values()):
        with race.start("ours", {}) as worker:
            tuner = Tuner(worker, texts)
            chosen |= {mode: getattr(tuner, mode)() for mode, needed in needs.items() if needed}
    if "pyctcdecode" in wanted:
        try:
            worker = race.worker("pyctcdecode", "pyctcdecode", PYCTCDECODE)
            chosen["pyctcdecode"] = tune_pyctcdecode(worker, texts)
        except Absent:
            pass  # it will be said of the side
    return chosen


def enter(race: Race, wanted: Sequence[str], chosen: dict[str, Options]) -> None:
    """Start what is wanted."""
    for side in wanted:
        if side.startswith("flashlight"):
            weights = {name: chosen["closed"][name] for name in ("lm_weight", "word_score")}
            options = {**weights, "beam": int(side.rpartition("_")[2])}
            race.add(side, "flashlight", options, shared=True)
        elif side.startswith("pyctcdecode"):
            options = chosen.get(side, PYCTCDECODE)
            race.add(side, "pyctcdecode", options, shared=True)
        elif side == "ours_open":
            race.add(side, "ours", {"engine": "auto", **chosen["open"]})
        else:
            race.add(side, "ours", {"engine": side.removeprefix("ours_"), **chosen["closed"]})


def show(rows: dict[str, dict[str, Any]]) -> None:
    """The table, for people."""
    heads = ("WER %", "objective", "CPU ms", "wall ms", "speed", "load s", "MB")
    names = ("wer", "objective", "ms", "wall_ms", "speed", "load_s", "memory_mb")
    print(f"{'':22}" + "".join(f"{head:>11}" for head in heads))
    for side, row in rows.items():
        cells = ("" if row.get(name) is None else f"{row[name]:.2f}" for name in names)
        print(f"{side:22}" + "".join(f"{cell:>11}" for cell in cells))


def main() -> None:
    """Parse, run, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--job", type=Path, help="a folder; without it, one is made up")
    parser.add_argument("--work", type=Path, help="what is made is kept here, for the next time")
    parser.add_argument("--quick", action="store_true", help=f"{QUICK} utterances")
    parser.add_argument("--json", action="store_true", help="one line at the end")
    parser.add_argument("--only", nargs="+", choices=SIDES, default=SIDES, metavar="SIDE")
    parser.add_argument("--peers-python", type=Path, help="an interpreter that has pyctcdecode")
    parser.add_argument("--install", action="store_true", help="make an environment for it")
    arguments = parser.parse_args()
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as scratch, ExitStack() as stack:
        work = (arguments.work or Path(scratch)).resolve()
        work.mkdir(parents=True, exist_ok=True)
        folder = arguments.job or (made := work / "job")
        if not arguments.job and not (made / "test.txt").exists():
            make(made, Made())
        job = open_job(folder.resolve(), work)
        peers = None
        if any(side.startswith("pyctcdecode") for side in arguments.only):
            peers = interpreter(arguments.peers_python, work if arguments.install else None)
        task = Path(scratch) / "task.json"
        task.write_text(json.dumps(job.task()))

        def start(program: str, options: Options) -> Worker:
            return Worker(program, task, options, peers, cache=work)

        race = Race(stack, start)
        chosen = choose(race, job, arguments.only)
        enter(race, arguments.only, chosen)
        texts = job.texts("test")[: QUICK if arguments.quick else None]
        rows = race.run(texts)
        scaling = race.threads(len(texts))
    show(rows)
    for mode, options in chosen.items():
        print(f"chosen on dev, {mode}: {options}")
    took = round(time.monotonic() - began)
    print(f"two threads: {scaling} x; {len(texts)} utterances, {took} s altogether")
    if arguments.json:
        extra: dict[str, Any] = {"utterances": len(texts), "rounds": ROUNDS, "threads_2": scaling}
        extra |= {"chosen": chosen, "took_s": took}
        sides: dict[str, Any] = {side: rows.get(side) for side in arguments.only}
        print(json.dumps(sides | extra))


if __name__ == "__main__":
    main()
