"""A large manifest: how fast it is read the first time and from its columns, memory, and headers.

    python benchmarks/manifest.py [--rows 10000000] [--files 2000] [--folder DIR]

Goes in: a number of rows and of audio files to generate. Goes out: a line of JSON on stdout.
``load_s`` is the time of ``manifest.read`` in a fresh process that finds the columns, and
``load_rss_mb`` the peak memory of that process, after it also summed all durations and parsed a
thousand rows; ``first_*`` are those of the process that made them. ``headers_per_s`` is
``w2vtool manifest build --verify header`` on one core with warm files: the survey alone, and
``build_per_s`` with rows, checks and the manifest. ``probe_per_s`` is ``audio.probe`` in a loop.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

WORDS = ("ONE", "TWO", "THREE", "AND", "MANY", "MORE", "WORDS", "THAT", "ARE", "SAID", "ALOUD")


def generate(path: Path, rows: int) -> float:
    """Rows like those of a corpus of read speech; seconds that writing them took."""
    from w2vtool.manifest import Utterance, Writer

    began = time.perf_counter()
    with Writer(path) as out:
        for block in range(0, rows, 10_000):
            random = np.random.default_rng(block)
            count = min(10_000, rows - block)
            samples = (16_000 * random.lognormal(np.log(4.8), 0.38, count)).astype(int) + 400
            words = random.integers(0, len(WORDS), (count, 8))
            for i in range(count):
                name = f"{block // 10_000:04d}-{i:05d}"
                text = " ".join(WORDS[word] for word in words[i])
                out.add(
                    Utterance(
                        name,
                        f"audio/{name}.flac",
                        int(samples[i]) / 16_000,
                        text=text,
                        speaker=f"speaker{block // 10_000 % 5000}",
                    )
                )
    return time.perf_counter() - began


def peak_mb() -> int:
    """Peak resident memory of this process (Linux); getrusage would count its parent's, too."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) >> 10


def load(path: Path) -> dict[str, Any]:
    """Read the manifest in this process."""
    from w2vtool import manifest

    before = peak_mb()
    began = time.perf_counter()
    found = manifest.read(path)
    seconds = time.perf_counter() - began
    loaded = peak_mb()
    total = float(found.durations.sum())
    numbers = np.random.default_rng(0).integers(0, len(found.rows), 1000).tolist()
    began = time.perf_counter()
    for number in numbers:
        assert found.rows[number].id
    each = (time.perf_counter() - began) / len(numbers)
    return {
        "rows": len(found.rows),
        "seconds": seconds,
        "import_rss": before,
        "loaded_rss": loaded,
        "rss": peak_mb(),
        "row_us": 1e6 * each,
        "hours": total / 3600,
    }


def fresh(path: Path) -> dict[str, Any]:
    """``load`` in a new process."""
    words = [sys.executable, __file__, "--load", str(path)]
    done = subprocess.run(words, check=True, capture_output=True, text=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def headers(folder: Path, files: int) -> dict[str, float]:
    """Headers a second on one core, the fastest of three rounds."""
    import soundfile

    from w2vtool import corpora, survey_parts
    from w2vtool.audio import probe

    time_S = np.arange(8_000) / 16_000
    paths = [folder / f"{number:06d}.flac" for number in range(files)]
    for number, path in enumerate(paths):
        wave = 0.1 * np.sin(2 * np.pi * (200 + number % 97) * time_S)
        soundfile.write(path, wave, 16_000, subtype="PCM_16")
    found: dict[str, list[float]] = {"probe_per_s": [], "headers_per_s": [], "build_per_s": []}
    for attempt in range(3):
        began = time.perf_counter()
        for path in paths:
            probe(path)
        found["probe_per_s"].append(files / (time.perf_counter() - began))
        began = time.perf_counter()
        for _ in survey_parts.look_at(paths, jobs=0, verify="header"):
            pass
        found["headers_per_s"].append(files / (time.perf_counter() - began))
        began = time.perf_counter()
        corpora.build_manifest([folder], folder / f"{attempt}.jsonl", jobs=0, verify="header")
        found["build_per_s"].append(files / (time.perf_counter() - began))
    return {name: round(max(rates)) for name, rates in found.items()}


def measure(rows: int, files: int, folder: Path) -> dict[str, Any]:
    """All figures."""
    path = folder / "rows.jsonl"
    written = generate(path, rows)
    (folder / ".rows.jsonl.columns").unlink(missing_ok=True)  # the writer leaves them, too
    first, again = fresh(path), min((fresh(path) for _ in range(3)), key=lambda r: r["seconds"])
    result = {
        "rows": rows,
        "megabytes": path.stat().st_size >> 20,
        "written_rows_per_s": round(rows / written),
        "first_s": round(first["seconds"], 2),
        "first_rows_per_s": round(rows / first["seconds"]),
        "first_rss_mb": first["rss"],
        "load_s": round(again["seconds"], 3),
        "loaded_rss_mb": again["loaded_rss"],
        "load_rss_mb": again["rss"],
        "import_rss_mb": again["import_rss"],
        "row_us": round(again["row_us"], 1),
    }
    (folder / "audio").mkdir()
    return result | (headers(folder / "audio", files) if files else {})


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--files", type=int, default=2_000)
    parser.add_argument("--folder", type=Path, help="where files are made; else a temporary one")
    parser.add_argument("--load", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.load:
        print(json.dumps(load(given.load)))
    else:
        with tempfile.TemporaryDirectory(dir=given.folder) as name:
            print(json.dumps(measure(given.rows, given.files, Path(name))))
