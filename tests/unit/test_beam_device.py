"""The tensor engine keeps to its device and asks little of it: operations and waits are counted.

A device is imagined under the name ``meta``: what is moved or made there is computed on the CPU,
and an operation that a GPU would refuse is refused here. ``tests/gpu`` asks CUDA.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import test_beam_engines as toys
import torch
from searches import same
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from w2vtool.decoder.beam import Search
from w2vtool.decoder.beam_torch import Engine
from w2vtool.decoder.lm import open_lm

MOVES = {"_to_copy", "copy_"}  # between devices
VIEWS = {
    *("select", "slice", "view", "view_as", "unsqueeze", "squeeze", "unbind", "expand", "t"),
    *("to", "lift_fresh", "detach", "alias"),
}
# the host waits for the result, or for its shape
WAITS = {"nonzero", "_unique2", "repeat_interleave", "bincount", "_local_scalar_dense"}
MAKE = torch.tensor


class There(Tensor):
    """A tensor on the imagined device; ``held`` is what it holds."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> There:
        made: There = Tensor._make_wrapper_subclass(
            cls, held.shape, held.stride(), dtype=held.dtype, device="meta"
        )
        made.held = held
        return made

    def tolist(self) -> Any:
        return self.held.tolist()

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise AssertionError(f"{func} is asked outside of the imagined device")


class Imagined(TorchDispatchMode):
    """Carries out what is asked of the imagined device, and refuses what a GPU would refuse."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        name = func._schema.name.removeprefix("aten::")
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        there = any(isinstance(leaf, There) for leaf in given)
        if there and name not in MOVES:
            strangers = [leaf for leaf in given if leaf.dim() and not isinstance(leaf, There)]
            assert not strangers, f"{name} meets tensors of two devices"
        if kwargs.get("device") is not None:
            there = kwargs.pop("device").type == "meta"
        if func._schema.is_mutable:
            there = isinstance(args[0], There)
        held = tree_map_only(There, lambda leaf: leaf.held, (args, kwargs))
        result = func(*held[0], **held[1])
        if not there and name != "_local_scalar_dense":
            return result
        self.seen[name] += name not in VIEWS
        return args[0] if func._schema.is_mutable else tree_map_only(Tensor, There, result)


def tensor(*args: Any, device: torch.device | None = None, **given: Any) -> Tensor:
    """``torch.tensor``, which asks no mode for its device."""
    made = MAKE(*args, **given)
    return made if device is None else made.to(device)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toys.write_models(tmp_path_factory.mktemp("lm"))


def imagined(search: Search, frames: Sequence[np.ndarray]) -> tuple[Counter[str], list[Any]]:
    """What a device is asked to do, and the hypotheses."""
    with pytest.MonkeyPatch.context() as patch, Imagined() as mode:
        patch.setattr(torch, "tensor", tensor)
        patch.setattr(search, "_engine", Engine(search.space, search.options, "meta"))
        return mode.seen, search.batch(frames)


@pytest.mark.parametrize("mode", toys.MODES)
def test_no_operation_meets_two_devices(folder: Path, mode: str) -> None:
    lm = open_lm(folder / "words.arpa")
    search = toys.made("torch", lm, folder, mode, hot=True, times=True)
    seen, there = imagined(search, toys.UTTERANCES)
    assert seen.total() > 1000  # what is imagined is followed
    for found, other in zip(there, search.batch(toys.UTTERANCES), strict=True):
        same(found, other)


@pytest.mark.parametrize(
    ("mode", "operations", "waits"), [("lexicon", 210, 11), ("tokens", 210, 11), ("open", 390, 17)]
)
def test_a_frame_asks_little_of_a_device(
    folder: Path, mode: str, operations: int, waits: int
) -> None:
    """However many utterances there are, and however wide the beam: a GPU does them at once."""
    lm = open_lm(folder / "words.arpa")
    for beam, copies in ((5, 1), (50, 1), (50, 6)):
        search = toys.made("torch", lm, folder, mode, beam=beam)
        frames = [np.concatenate(toys.UTTERANCES)[:80]] * copies
        short, long = (imagined(search, [u[:t] for u in frames])[0] for t in (16, 80))
        more = long - short  # in 64 frames
        assert more.total() <= operations * 64
        assert sum(more[name] for name in WAITS) <= waits * 64
