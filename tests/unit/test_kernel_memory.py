"""How many kernels oneDNN prepares and keeps on CPUs: they are memory, and time to prepare."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from w2vtool import device

NAME = "ONEDNN_PRIMITIVE_CACHE_CAPACITY"
GIB = 2**30
onednn = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch has no oneDNN")


@pytest.mark.parametrize(
    ("memory", "processes", "kept"),
    [
        (8 * GIB, None, 6710),
        (8 * GIB, "2", 3355),
        (64 * GIB, None, 16_384),
        (64 * GIB, "1", 16_384),
    ],
)
def test_kernels_may_take_a_quarter_of_the_memory(
    memory: int, processes: str | None, kept: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": memory // 4096}
    monkeypatch.setattr(device.os, "sysconf", known.__getitem__)
    monkeypatch.setenv(NAME, "")  # so that it is put back
    monkeypatch.delenv(NAME)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    if processes:
        monkeypatch.setenv("LOCAL_WORLD_SIZE", processes)
    device.choose("cpu")
    assert os.environ[NAME] == str(kept)


def test_the_users_own_number_of_kernels_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(NAME, "7")
    device.choose("cpu")
    assert os.environ[NAME] == "7"


CONVOLUTIONS = """
import torch
from w2vtool import device
device.MOST_KERNELS = {most}
device.choose("cpu")
for length in (*range(1000, 1012), 1000):
    print("NEXT", flush=True)
    torch.nn.functional.conv1d(torch.zeros(2, 16, length), torch.zeros(16, 16, 5))
"""

UPDATES = """
import torch
import toys
from w2vtool import device
from w2vtool.model.heads import PretrainModel
here = device.choose("cpu")
model = PretrainModel(toys.GROUP)
wave_BS = torch.randn(4, 16_000)
for masked in (20, 21, 25):
    print("NEXT", flush=True)
    mask_BT = torch.zeros(4, 49, dtype=torch.bool)
    mask_BT[:, :masked] = True
    negative_BMN = torch.randint(masked - 1, (4, masked, 5))
    noise_MGE = torch.rand(4 * masked, 2, toys.GROUP.codebook_entries)
    with device.autocast(here, "bf16"):
        out = model(wave_BS, mask_BT, negative_BMN, masked=masked, noise_MGE=noise_MGE)
    out.logits_BMN[..., 0].sum().backward()
"""


def prepared(script: str) -> list[int]:
    """How many kernels oneDNN prepares after each NEXT that the script prints."""
    tests = Path(__file__).parents[1]
    found = {name: value for name, value in os.environ.items() if name != NAME}
    path = os.pathsep.join([str(tests), str(tests.parent)])
    more = {"ONEDNN_VERBOSE": "profile", "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    done = subprocess.run(
        [sys.executable, "-u", "-c", script],
        env={**found, **more},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return [part.count("create:cache_miss") for part in done.stdout.split("NEXT")[1:]]


@onednn
@pytest.mark.parametrize(("most", "again"), [(4, True), (16_384, False)])
def test_kernels_over_the_number_are_forgotten(most: int, again: bool) -> None:
    *made, last = prepared(CONVOLUTIONS.format(most=most))
    assert all(made)
    assert bool(last) is again


@onednn
def test_no_kernel_is_prepared_for_another_number_of_masked_frames() -> None:
    first, *later = prepared(UPDATES)
    if not first:
        pytest.skip("oneDNN has no bf16 on this CPU")
    assert later == [0, 0]
