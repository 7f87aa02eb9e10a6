"""The batch plan of a large corpus: time to make it, memory, and what it costs to begin anywhere.

    python benchmarks/plan.py [--rows 10000000]

Goes in: a number of rows. Goes out: a line of JSON on stdout. ``seek_ratio`` is the time to the
first bin at update 1,000,000 (of 64 bins) over that at update 0, the fastest of several.
"""

from __future__ import annotations

import argparse
import json
import time
import tracemalloc
from collections.abc import Callable
from functools import partial

import numpy as np

from w2vtool.plan import Plan

BINS = 64
FAR = 1_000_000


def plan(rows: int) -> Plan:
    """Single sentences: log-normal around 5 s."""
    seconds = np.random.default_rng(0).lognormal(np.log(4.8), 0.38, rows).clip(1, 15)
    return Plan(
        seconds,
        bin_seconds=87.5,
        min_seconds=1,
        max_seconds=15,
        crop=False,
        seed=1,
        source="5f2e" * 16,
    )


def timed(work: Callable[[], object]) -> float:
    """Seconds."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def measure(rows: int, rounds: int = 7) -> dict[str, float]:
    """All figures."""
    build = timed(lambda: plan(rows))
    tracemalloc.start()
    made = plan(rows)
    for number in range(0, made.bins_per_epoch, made.bins_per_epoch // 2000 + 1):
        made.bin(number)  # 2,000 of them: every bucket is met
    resident, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    first, far = [], []
    for _ in range(rounds):
        for number, times in ((FAR * BINS, far), (0, first)):
            for epoch in (5, 6):  # so that neither finds its own epoch in memory
                made.bin(epoch * made.bins_per_epoch)
            times.append(timed(partial(made.bin, number)))
    count = min(20_000, made.bins_per_epoch)
    every = timed(lambda: [made.bin(i) for i in range(count)]) / count
    return {
        "rows": rows,
        "build_s": round(build, 2),
        "bytes_a_row": round(resident / rows, 2),
        "peak_bytes_a_row": round(peak / rows, 1),
        "first_bin_s": round(min(first), 4),
        "first_bin_far_s": round(min(far), 4),
        "seek_ratio": round(min(far) / min(first), 3),
        "bin_us": round(1e6 * every, 1),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rows", type=int, default=10_000_000)
    print(json.dumps(measure(parser.parse_args().rows)))
