"""CUDA itself says that an update waits for nothing (``torch.cuda.set_sync_debug_mode``)."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from w2vtool.run import Stop

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
]
WARM, UPDATES = 3, 6


@pytest.fixture
def strict() -> Iterator[None]:
    yield
    torch.cuda.set_sync_debug_mode("default")


@pytest.mark.usefixtures("strict")
@pytest.mark.parametrize("precision", ["float32", "bf16"])
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("kind", ["pretrain", "ctc"])
def test_updates_wait_for_nothing(
    kind: str,
    compiled: bool,
    precision: str,
    toy_corpus: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "unit")
    from test_trainer import build

    from w2vtool import objectives
    from w2vtool.feed import BinNumbers, read

    def no_ctc(logits_BTV: Tensor, *_: Tensor) -> Tensor:
        """The library's CTC loss waits by itself: it wants the lengths on the host."""
        return logits_BTV.float().pow(2).sum()

    monkeypatch.setattr(objectives, "ctc_loss", no_ctc)
    job = build(kind, toy_corpus, tmp_path, bins=2, updates=WARM + UPDATES, precision=precision)
    loop = job.loop.model_copy(update={"compile": compiled})
    job = dataclasses.replace(job, device=torch.device("cuda"), loop=loop)
    job.model.train()
    updates = BinNumbers(0, WARM + UPDATES, 2, 0, 1)
    held = list(read(job.train, updates, job.loop, pin=True))
    for _ in range(2):  # all shapes: graphs are compiled and kernels chosen before the strict part
        warm = iter(held)
        for _ in range(WARM + UPDATES):
            job.update(warm, Stop())
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    batches = iter(held)
    for _ in range(UPDATES):
        job.update(batches, Stop())
    torch.cuda.set_sync_debug_mode("default")
    assert all(torch.isfinite(p).all() for p in job.model.parameters())
