"""An update asks the device for nothing: no number is read back between two lines of metrics.

On a CPU everything is at hand, so a CUDA device is imagined: what is moved to it, and what is
computed from that, is marked, and operations that would wait for marked numbers are found.
``tests/gpu/test_syncs.py`` asks CUDA itself.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from test_trainer import Make, build
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

from w2vtool import device, signals, trainer
from w2vtool.batches import Batch
from w2vtool.feed import BinNumbers, read
from w2vtool.model.encoder import Block
from w2vtool.run import Stop
from w2vtool.trainer import Training

pytestmark = pytest.mark.usefixtures("one_thread")
# Operations whose result, or the shape of it, the host has to know.
READS = {
    *("_local_scalar_dense", "is_nonzero", "equal", "nonzero", "masked_select", "bincount"),
    *("_unique", "_unique2", "unique_dim", "unique_consecutive", "repeat_interleave"),
}


class Imagined(TorchDispatchMode):
    """Marks what is on the imagined device, and lists the operations that would wait for it."""

    def __init__(self) -> None:
        super().__init__()
        self.there: Any = WeakIdKeyDictionary()
        self.waits: list[str] = []
        self.seen = 0

    def mark(self, found: Any) -> None:
        """These tensors are on the device."""
        for leaf in tree_leaves(found):
            if isinstance(leaf, Tensor):
                self.there[leaf] = True

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        marked = [
            x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor) and x in self.there
        ]
        if not marked:
            return result
        self.seen += 1
        name = func._schema.name.removeprefix("aten::")
        home = name == "_to_copy" and kwargs.get("device") is not None
        if home and not kwargs.get("non_blocking"):
            self.waits.append("a copy to the host")
        if name in READS or (name.startswith("index") and self.chosen_by_mask(args)):
            self.waits.append(name)
        if not home:
            self.mark(result)
            if func._schema.is_mutable:
                self.mark(args[0])
        return result

    @staticmethod
    def chosen_by_mask(args: Any) -> bool:
        """Whether an index is a mask: as many results as it has places, which is to be counted."""
        return any(isinstance(x, Tensor) and x.dtype == torch.bool for x in tree_leaves(args[1:2]))


@pytest.fixture(params=["pretrain", "ctc"])
def make(request: pytest.FixtureRequest, toy_corpus: Path, tmp_path: Path) -> Make:
    return partial(build, request.param, toy_corpus, tmp_path)


def watched(
    job: Training, monkeypatch: pytest.MonkeyPatch, updates: int = 3
) -> tuple[Imagined, list[Tensor | None]]:
    """Updates of a run whose model, counts and batches are on the imagined device."""
    mode = Imagined()

    def moved(real: Callable[..., Any]) -> Callable[..., Any]:
        def to(*args: Any) -> Any:
            found = real(*args)
            mode.mark(list(vars(found).values()) if isinstance(found, Batch) else found)
            return found

        return to

    def heed(self: signals.Wishes, sums: Tensor) -> None:  # as from CUDA
        self._asked = torch.maximum(self._asked, torch.tensor(self._later.swap(sums)))

    monkeypatch.setattr(Batch, "to", moved(Batch.to))
    for module in (trainer, signals):
        monkeypatch.setattr(module, "send", moved(device.send))
    monkeypatch.setattr(signals.Wishes, "heed", heed)
    mode.mark([*job.model.parameters(), job.tally, job.guards.numbers, job.quarantine.counts])
    job.model.train()
    batches = read(job.train, BinNumbers(0, updates, job.loop.bins, 0, 1), job.loop)
    norms = []
    for _ in range(updates):
        held = [next(batches) for _ in range(job.loop.bins)]  # loaders may read what they like
        with mode:
            norms.append(job.update(iter(held), Stop()))
    return mode, norms


def test_an_update_reads_nothing_back(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    job = make("run", bins=2)
    mode, norms = watched(job, monkeypatch)
    assert mode.waits == []
    assert mode.seen > 1000  # what is imagined is followed
    # … to the end: the norm and the weights are there, what was asked for by signals is here
    assert all(norm in mode.there for norm in norms)
    assert job.guards.numbers in mode.there
    assert job.wishes._asked not in mode.there


@pytest.mark.parametrize(
    ("spoil", "found"),
    [
        (lambda x: x.sum().item(), "_local_scalar_dense"),
        (lambda x: bool(x.sum() > 0), "_local_scalar_dense"),
        (lambda x: x[x > 0], "nonzero"),
        (lambda x: x.masked_select(x > 0), "masked_select"),
        (lambda x: torch.equal(x, x + 1), "equal"),
        (lambda x: (x > 0).to(torch.int64).nonzero(), "nonzero"),
        (lambda x: x.to("cpu", torch.float64, copy=True), "a copy to the host"),
    ],
)
def test_what_would_wait_is_found(
    make: Make, monkeypatch: pytest.MonkeyPatch, spoil: Callable[[Tensor], Any], found: str
) -> None:
    job = make("run", bins=1)
    real = job.objective

    def spoilt(model: nn.Module, batch: Batch, step: int) -> Any:
        loss = real(model, batch, step)
        spoil(loss.total.detach() * torch.ones(3))
        return loss

    job.objective = spoilt
    assert found in " ".join(watched(job, monkeypatch, 1)[0].waits).replace("index", "nonzero")


def test_pre_training_gives_attention_no_mask_and_padded_rows_do(
    toy_corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    masks: list[bool] = []
    real = Block.forward

    def forward(self: Block, x_BTD: Tensor, keep_B11T: Tensor | None) -> Tensor:
        masks.append(keep_B11T is not None)
        return real(self, x_BTD, keep_B11T)

    monkeypatch.setattr(Block, "forward", forward)
    seen = {}
    for kind in ("pretrain", "ctc"):
        masks.clear()
        job = build(kind, toy_corpus, tmp_path, kind, bins=4, updates=4)
        watched(job, monkeypatch, 4)
        seen[kind] = set(masks)
    assert seen["pretrain"] == {False}
    assert True in seen["ctc"]


# -- copies ----------------------------------------------------------------------------------------


def a_batch(**more: Any) -> Batch:
    return Batch(torch.zeros(1, 400), None, torch.zeros(1, dtype=torch.int64), 1, [0], **more)


def test_a_batch_is_pinned_whole_and_moved_without_waiting(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    moved, pinned = [], []
    real = Tensor.to

    def to(self: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        moved.append(kwargs)
        return real(self, *args, **kwargs)

    monkeypatch.setattr(Tensor, "to", to)
    monkeypatch.setattr(Tensor, "pin_memory", lambda self: pinned.append(self) or self)
    batch = a_batch(mask_BT=torch.zeros(1, 1, dtype=torch.bool))
    batch.pin_memory().to(torch.device("cpu"))
    assert len(pinned) == 3
    assert moved == [{"non_blocking": True}] * 3


@pytest.mark.parametrize("kind", ["cpu", "cuda"])
def test_numbers_go_to_cuda_from_pinned_memory(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}

    class Held:
        def to(self, where: torch.device, *, non_blocking: bool) -> Any:
            asked.update(where=where.type, non_blocking=non_blocking)
            return self

    def tensor(numbers: Any, **more: Any) -> Held:
        asked.update(more)
        return Held()

    monkeypatch.setattr(torch, "tensor", tensor)
    device.send([1.0], torch.device(kind))
    assert asked["pin_memory"] is (kind == "cuda")
    assert (asked["where"], asked["non_blocking"]) == (kind, True)


def test_the_loader_pins_for_cuda_only(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []

    def fake(*args: Any, pin: bool, **more: Any) -> Any:
        asked.append(pin)
        return iter(())

    monkeypatch.setattr(trainer, "read", fake)
    for kind in ("cpu", "cuda"):
        job = make(kind, updates=1)
        job.done, job.saved = 1, 1  # nothing is left to do
        job.device = torch.device(kind)
        from test_trainer import Memory

        trainer._train(job, Memory())
    assert asked == [False, True]
