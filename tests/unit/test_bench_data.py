"""The loader and the plain loop are timed on the same rows."""

from __future__ import annotations

import itertools
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import soundfile
import toys

from w2vtool import bench_data, manifest, packing, training
from w2vtool.batches import pretrain_batch
from w2vtool.manifest import Manifest
from w2vtool.schema import LoopConfig, MaskConfig
from w2vtool.shard_writer import Packing


@pytest.fixture(params=["files", "shards"])
def source(request: pytest.FixtureRequest, tmp_path: Path) -> Manifest:
    found = manifest.read(toys.corpus(tmp_path, "train", 12))
    if request.param == "shards":
        packing.pack_all(found, tmp_path / "out", size=10**6, packing=Packing())
        found = manifest.read(tmp_path / "out" / "manifest.jsonl")
    return found


def test_both_read_the_rows_of_every_bin_and_their_cpu_seconds_are_compared(
    source: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop = LoopConfig(bin_seconds=4)
    collate = partial(pretrain_batch, architecture=toys.TINY, mask=MaskConfig(), max_seconds=15)
    split = training.split(source, loop, collate, crop=True)
    rows = [len(split.plan.bin(number).rows) for number in range(6)]
    seconds = [
        sum(source.rows[row].duration for row in split.plan.bin(number).rows) for number in range(6)
    ]
    read, plain = [], soundfile.read
    heard: list[str] = []
    audio = Manifest.audio

    def counting(*words: Any, **options: Any) -> Any:
        read.append(words)
        return plain(*words, **options)

    def counted(self: Manifest, row: manifest.Utterance) -> Any:
        heard.append(row.id)
        return audio(self, row)

    monkeypatch.setattr(soundfile, "read", counting)
    monkeypatch.setattr(Manifest, "audio", counted)
    # the loader takes 3 s a bin, the loop 2 s
    ticks = itertools.accumulate(itertools.cycle([3.0, 7.0, 2.0, 5.0]), initial=0.0)
    monkeypatch.setattr(bench_data.time, "process_time", lambda: next(ticks))
    found = bench_data.against_soundfile(split, 4)
    assert len(read) == len(heard) == sum(rows)
    assert found["ratio"] == pytest.approx(2 / 3)
    assert found["loader_s_per_cpu_s"] == pytest.approx(sum(seconds[2:]) / 12)
    assert found["soundfile_s_per_cpu_s"] == pytest.approx(sum(seconds[2:]) / 8)
