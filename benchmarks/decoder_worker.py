"""The sides of ``decoder.py``, each in a process of its own that times itself.

    PYTHON benchmarks/decoder_worker.py PROGRAM TASK OPTIONS

Goes in: ``TASK``, a JSON file with the model's symbols, the lexicon, the ARPA file and the folder
of the job; the options to load with; then a line of JSON on stdin for each thing to decode. Goes
out: a line of JSON for each, the first one with the seconds and megabytes that loading took.

Why a process each: memory and load time are a side's own, and pyctcdecode needs an interpreter
with packages of its own. So nothing but numpy is imported before a side is chosen.
"""

from __future__ import annotations

import json
import math
import os
import resource
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
import numpy as np

Task = dict[str, Any]
Found = list[tuple[str, float]]  # texts and scores
Decode = Callable[[Sequence[np.ndarray]], Found]
Prepared = Callable[[dict[str, Any]], Decode]  # from options
WORD_END = "|"


def ours(task: Task) -> Prepared:
    """Our search; options are those of BeamOptions, the engine and the number of threads."""
    import torch

    from w2vtool.decoder.beam import BeamOptions, Search
    from w2vtool.decoder.lexicon import Lexicon
    from w2vtool.decoder.lm import open_lm
    from w2vtool.tokens import Tokens

    torch.set_num_threads(1)
    lexicon = Lexicon(tuple(task["words"]), tuple(map(tuple, task["spellings"])))
    tokens, model = Tokens(tuple(task["symbols"])), open_lm(task["arpa"])

    def prepare(options: dict[str, Any]) -> Decode:
        others: dict[str, Any] = {"engine": "auto", "threads": 1}
        for name in set(options) & set(others):
            others[name] = options[name]
        chosen = {name: value for name, value in options.items() if name not in others}
        search = Search(tokens, lexicon, model, BeamOptions(**chosen), **others)
        return lambda frames: [(h[0].text, h[0].score) for h in search.batch(frames)]

    return prepare


def flashlight(task: Task) -> Prepared:
    """flashlight-text, with all tokens tried and its usual threshold."""
    from flashlight.lib.text import decoder as fl
    from flashlight.lib.text.decoder.kenlm import KenLM
    from flashlight.lib.text.dictionary import create_word_dict

    symbols = task["symbols"]
    words = create_word_dict({word: [[]] for word in (*task["words"], "<unk>")})
    model = KenLM(task["arpa"], words)
    separator = symbols.index(WORD_END)
    trie = fl.Trie(len(symbols), separator)
    for word, spelling in zip(task["words"], task["spellings"], strict=True):
        index = words.get_index(word)
        trie.insert(spelling, index, model.score(model.start(False), index)[1])
    trie.smear(fl.SmearingMode.MAX)

    def prepare(options: dict[str, Any]) -> Decode:
        chosen = fl.LexiconDecoderOptions(
            beam_size=options["beam"],
            beam_size_token=len(symbols),
            beam_threshold=25.0,
            lm_weight=options["lm_weight"],
            word_score=options["word_score"],
            unk_score=-math.inf,
            sil_score=0.0,
            log_add=False,
            criterion_type=fl.CriterionType.CTC,
        )
        unknown = words.get_index("<unk>")
        search = fl.LexiconDecoder(
            chosen, trie, model, separator, task["blank"], unknown, [], False
        )

        def one(logp_TV: np.ndarray) -> tuple[str, float]:
            best = search.decode(logp_TV.ctypes.data, *logp_TV.shape)[0]
            return " ".join(words.get_entry(w) for w in best.words if w >= 0), best.score

        return lambda frames: [one(logp_TV) for logp_TV in frames]

    return prepare


def pyctcdecode(task: Task) -> Prepared:
    """Pyctcdecode with its own pruning; options are alpha and beta. Its score is another one."""
    import kenlm  # noqa: F401  (pyctcdecode would do without a model where it is missing)
    import pyctcdecode as theirs

    labels = ["" if i == task["blank"] else s for i, s in enumerate(task["symbols"])]
    labels = [" " if s == WORD_END else s for s in labels]
    search = theirs.build_ctcdecoder(labels, task["arpa"], list(dict.fromkeys(task["words"])))

    def prepare(options: dict[str, Any]) -> Decode:
        def decode(frames: Sequence[np.ndarray]) -> Found:
            search.reset_params(**options)
            return [(search.decode(logp_TV), math.nan) for logp_TV in frames]

        return decode

    return prepare


PROGRAMS: dict[str, Callable[[Task], Prepared]] = {
    "ours": ours,
    "flashlight": flashlight,
    "pyctcdecode": pyctcdecode,
}
IMPORTS = {  # what is in memory before loading is measured
    "ours": ("torch", "w2vtool.decoder.beam_torch", "w2vtool.decoder.beam"),
    "flashlight": ("flashlight.lib.text.decoder.kenlm",),
    "pyctcdecode": ("kenlm", "pyctcdecode"),
}


def split(folder: str, name: str) -> list[np.ndarray]:
    """Log-probabilities of a part of the job, float32 [T, V] each."""
    with np.load(Path(folder) / f"{name}.npz") as found:
        logp, lengths = found["logp"], found["lens"]
    pairs = zip(logp, lengths, strict=True)
    return [np.ascontiguousarray(logp_TV[:n], np.float32) for logp_TV, n in pairs]


def resident() -> float:
    """Megabytes of the process in memory, where Linux tells; the most ever elsewhere."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return pages * resource.getpagesize() / 2**20


class Timed:
    """A side that times what it decodes; what it has not met before is not part of the time."""

    def __init__(self, program: str, task: Task, options: dict[str, Any]) -> None:
        self._folder = task["folder"]
        self._frames: dict[str, list[np.ndarray]] = {}
        before, begin = resident(), time.perf_counter()
        self._prepare = PROGRAMS[program](task)
        first = self._prepare(options)
        self.loading = {
            "load_s": round(time.perf_counter() - begin, 3),
            "memory_mb": round(resident() - before, 1),
        }
        self._decoders = {json.dumps(options): first}
        self._warm: set[str] = set()

    def decode(self, options: dict[str, Any], part: str, utterances: int) -> dict[str, Any]:
        """Texts, scores, and seconds of CPU and by the clock."""
        if part not in self._frames:
            self._frames[part] = split(self._folder, part)
        key, frames = json.dumps(options), self._frames[part][:utterances]
        if key not in self._decoders:
            self._decoders[key] = self._prepare(options)
        decode = self._decoders[key]
        if key not in self._warm:  # numba compiles, or reads what it has compiled
            decode([frames[0][:50]])
            self._warm.add(key)
        cpu, wall = time.process_time(), time.perf_counter()
        found = decode(frames)
        spent = {"cpu_s": time.process_time() - cpu, "wall_s": time.perf_counter() - wall}
        return {"found": found, **spent}


def main() -> None:
    """Answer until stdin ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints is no answer
    program, task = sys.argv[1], json.loads(Path(sys.argv[2]).read_text())
    options = json.loads(sys.argv[3])
    for name in IMPORTS[program]:
        __import__(name)
    if options.get("engine", "auto") != "torch":
        with suppress(ImportError):  # auto does without
            __import__("numba")
    side = Timed(program, task, options)
    print(json.dumps(side.loading), file=answers, flush=True)
    for line in sys.stdin:
        print(json.dumps(side.decode(**json.loads(line))), file=answers, flush=True)


if __name__ == "__main__":
    main()
