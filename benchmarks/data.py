"""The loader beside a plain loop of soundfile over the same FLAC files, case by case.

    python benchmarks/data.py [--seconds 300]

Goes in: how much audio to write to a temporary folder for a case. Goes out: a line of JSON a case
on stdout: audio seconds that a core gets through in a second, by the loader and by the loop, and
their ratio. Cases: utterances of 15 s and of 4 s; pre-training, the same from shards, CTC, and
crops of 15.6 s from recordings of ten minutes (``whole`` is the time of decoding these whole over
that of the loader).
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch

from w2vtool import bench, manifest, packing, training
from w2vtool.architecture import ModelConfig
from w2vtool.batches import Collate, ctc_batch, pretrain_batch
from w2vtool.bench_data import against_soundfile
from w2vtool.feed import Split
from w2vtool.manifest import Manifest
from w2vtool.schema import LoopConfig, MaskConfig
from w2vtool.shard_writer import Packing
from w2vtool.text import Tokens

LOOP = LoopConfig(bin_seconds=87.5, max_seconds=15.625)
SIZES = ModelConfig().sizes()


def corpus(folder: Path, seconds: float, total: float) -> Manifest:
    """FLAC files of one length."""
    found = bench.write_flac(folder, max(8, round(total / seconds)), seconds)
    manifest.write(found.path, found.rows)
    return found


def shards(source: Manifest) -> Manifest:
    """The same, packed as it is."""
    packing.pack_all(source, source.path.parent / "out", size=10**9, packing=Packing())
    return manifest.read(source.path.parent / "out" / "manifest.jsonl")


def cases(total: float) -> Iterator[tuple[str, Callable[[Path], Manifest], Collate, bool]]:
    """Name, corpus, how bins become batches, and whether rows are cropped."""
    mask = MaskConfig()
    pre = partial(pretrain_batch, architecture=SIZES, mask=mask, max_seconds=LOOP.max_seconds)
    ctc = partial(ctc_batch, architecture=SIZES, tokens=Tokens(), mask=mask)
    for seconds in (15.0, 4.0):
        files = partial(corpus, seconds=seconds, total=total)
        yield f"pretrain {seconds:.0f} s", files, pre, True
        yield f"pretrain {seconds:.0f} s, shards", lambda path, f=files: shards(f(path)), pre, True
        yield f"ctc {seconds:.0f} s", files, ctc, False
    yield "crops of 10 min", partial(corpus, seconds=600.0, total=total), pre, True


def measure(total: float) -> None:
    """All cases, a line each."""
    torch.set_num_threads(1)
    for name, files, collate, crop in cases(total):
        with tempfile.TemporaryDirectory() as folder:
            source = files(Path(folder))
            split: Split = training.split(source, LOOP, collate, crop=crop)
            figures = against_soundfile(split, max(8, 2 * split.plan.bins_per_epoch))
        if name == "crops of 10 min":  # the loop decodes 600 s for each 15.6
            figures = {"whole": figures["ratio"]}
        print(json.dumps({"case": name} | {key: round(x, 3) for key, x in figures.items()}))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=600.0)
    measure(parser.parse_args().seconds)
