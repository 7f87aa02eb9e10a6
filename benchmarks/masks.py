"""Span masks of a batch, equalised: how long ours take, and a row at a time as fairseq makes them.

    python benchmarks/masks.py [--rows 64] [--frames 780] [--device cpu|cuda] [--threads 1]

Goes in: the size of a batch. Goes out: a line of JSON on stdout, milliseconds a batch: the best of
several rounds of ten batches, in which all take turns. The two references have the law of fairseq
v0.12.2: ``loops`` with an urn and a loop over frames, ``row_by_row`` with numpy's ``choice``.
"""

from __future__ import annotations

import argparse
import json
import math
import timeit
from collections.abc import Callable

import numpy as np
import torch

from w2vtool.model.masking import equalise, mix, span_mask

PROBABILITY, LENGTH = 0.65, 10
Rows = list[np.ndarray]


def spans(rng: np.random.Generator, frames: int) -> int:
    """How many a row has: rounded at random, two at least."""
    return max(2, math.floor(PROBABILITY * frames / LENGTH + rng.random()))


def looped(rng: np.random.Generator, rows: int, frames: int) -> np.ndarray:
    """Loops over rows, spans and frames."""
    mask = np.zeros((rows, frames), bool)
    for row in mask:
        urn = list(range(frames - LENGTH))
        for _ in range(spans(rng, frames)):
            start = urn.pop(int(rng.integers(len(urn))))
            for frame in range(start, start + LENGTH):
                row[frame] = True
    return cut(rng, [np.flatnonzero(row) for row in mask], mask)


def row_by_row(rng: np.random.Generator, rows: int, frames: int) -> np.ndarray:
    """A loop over rows, with a list of the frames of each."""
    masked = []
    for _ in range(rows):
        starts = rng.choice(frames - LENGTH, spans(rng, frames), replace=False)
        masked.append(np.unique([start + i for start in starts for i in range(LENGTH)]))
    return cut(rng, masked, np.zeros((rows, frames), bool))


def cut(rng: np.random.Generator, masked: Rows, mask: np.ndarray) -> np.ndarray:
    """As many masked frames in every row as the poorest has."""
    fewest = min(map(len, masked))
    mask[:] = False
    for row, there in zip(mask, masked, strict=True):
        row[rng.choice(there, fewest, replace=False)] = True
    return mask


def vectorised(key_B: torch.Tensor, frames: int) -> torch.Tensor:
    """Ours."""
    frames_B = torch.full((len(key_B),), frames, device=key_B.device)
    return equalise(span_mask(key_B, frames_B, frames, PROBABILITY, LENGTH), key_B)


def measure(rows: int, frames: int, device: str, rounds: int = 10) -> dict[str, float | str]:
    """The fastest of each."""
    rng, key_B = np.random.default_rng(0), mix(torch.arange(rows)).to(device)

    def ours() -> None:
        vectorised(key_B, frames)
        if key_B.is_cuda:
            torch.cuda.synchronize()

    works: dict[str, Callable[[], object]] = {
        "loops": lambda: looped(rng, rows, frames),
        "row_by_row": lambda: row_by_row(rng, rows, frames),
        "ours": ours,
    }
    best = dict.fromkeys(works, math.inf)
    for _ in range(rounds):
        for name, work in works.items():
            best[name] = min(best[name], 100 * timeit.timeit(work, number=10))
    return {
        "rows": rows,
        "frames": frames,
        "device": device,
        "threads": torch.get_num_threads(),
        **{f"{name}_ms": round(value, 3) for name, value in best.items()},
        "loops_over_ours": round(best["loops"] / best["ours"], 1),
        "row_by_row_over_ours": round(best["row_by_row"] / best["ours"], 1),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--frames", type=int, default=780)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    words = parser.parse_args()
    torch.set_num_threads(words.threads)
    print(json.dumps(measure(words.rows, words.frames, words.device)))
