"""Reading audio with all checks, against soundfile without any: headers, whole files, members.

    python benchmarks/audio.py [--seconds 10] [--rounds 25]

Goes in: the length of generated files. Goes out: a line of JSON a format on stdout. One process,
one core, warm cache; the sides take turns, and the fastest round of each counts. ``probe_ratio`` is
the time of ``soundfile.info`` over that of ``audio.probe``, so above 1 is faster than without
checks; ``read_ratio`` the time of ``soundfile.read`` over that of ``audio.read``, ``member_ratio``
over that of ``audio.read`` of the same bytes as a member of a shard.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import soundfile

from w2vtool import audio

KINDS: dict[str, dict[str, str]] = {
    "wav": {},
    "flac": {},
    "aiff": {},
    "ogg": {"subtype": "VORBIS"},
    "opus": {"format": "OGG", "subtype": "OPUS"},
    "mp3": {},
}
FILES = 12


def voice(seconds: float) -> np.ndarray:
    """Tones with some noise, which FLAC brings to about the size of speech."""
    t = np.arange(round(seconds * 16_000)) / 16_000
    noise = np.random.default_rng(0).standard_normal(t.size)
    return (0.3 * np.sin(2 * np.pi * 300 * t * (1 + 0.1 * np.sin(t))) + 0.02 * noise).astype("f4")


def measure(folder: Path, kind: str, seconds: float, rounds: int) -> dict[str, object]:
    """All figures of a format."""
    files = [str(folder / f"{number}.{kind}") for number in range(FILES)]
    for file in files:
        soundfile.write(file, voice(seconds), 16_000, **KINDS[kind])  # type: ignore[arg-type]
    size = Path(files[0]).stat().st_size
    ways: dict[str, Callable[[str], object]] = {
        "info": soundfile.info,
        "probe": audio.probe,
        "plain": lambda file: soundfile.read(file, dtype="float32"),
        "read": audio.read,
        "member": lambda file: audio.read(file, span=(0, size)),
    }
    best = dict.fromkeys(ways, float("inf"))
    for _ in range(rounds):
        for name, way in ways.items():
            began = time.perf_counter()
            for file in files:
                way(file)
            best[name] = min(best[name], (time.perf_counter() - began) / FILES)
    return {
        "format": kind,
        "probes_per_s": round(1 / best["probe"]),
        "probe_ratio": round(best["info"] / best["probe"], 2),
        "read_ratio": round(best["plain"] / best["read"], 3),
        "member_ratio": round(best["plain"] / best["member"], 3),
        "read_x_real_time": round(seconds / best["read"]),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--rounds", type=int, default=25)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        for kind in KINDS:
            print(json.dumps(measure(Path(place), kind, given.seconds, given.rounds)), flush=True)
