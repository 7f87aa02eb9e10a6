"""What a training run may ask of the network's parts: recompute, compile, compute once an update.

Goes in: a model that has ``ContextNetwork`` in it. Goes out: the same model, with the same names of
weights and the same numbers (to rounding, and other dropout masks where graphs are compiled), that
takes less memory or less time.

Why whole blocks: all of them have one shape of weights, so one graph serves them all, and LayerDrop
decides outside of it. Why with free lengths, not a graph for each length: a bin has as many rows as
there are left, so there are more shapes than buckets, and kernels of a free length lose little,
since every sum in them is over the width, which is known.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from w2vtool.errors import ConfigError
from w2vtool.model.encoder import ContextNetwork, ConvLayer, PositionalConv

log = logging.getLogger(__name__)
VARIANTS = 64  # graphs that one region may have in a process: see ``compile_regions``


def contexts(model: nn.Module, asked: str) -> list[ContextNetwork]:
    """The context networks of a model. Raises ConfigError when there is none: for ``asked``."""
    found = [module for module in model.modules() if isinstance(module, ContextNetwork)]
    if not found:
        raise ConfigError(
            f"{asked} is about Transformer blocks, and {type(model).__name__} has none of ours",
            hint=f"leave {asked} out",
        )
    return found


def recompute(model: nn.Module) -> None:
    """Keep the inputs of the blocks only, and compute them again in the backward pass.

    Dropout masks are drawn again from the same state of the generator, so nothing changes but time
    and memory (Chen et al. 2016, "Training deep nets with sublinear memory cost").
    """
    for context in contexts(model, "loop.recompute"):
        context.recompute = True


def compile_regions(model: nn.Module, backend: str | Callable[..., Any] = "inductor") -> None:
    """Compile the blocks, one graph for all, and what follows the feature encoder's convolutions.

    A graph serves any number of rows (one apart) and any length; training and validation, with and
    without padding have their own. ``forward`` is compiled, not the module: what FSDP does before
    and after it stays outside of the graph. Graphs are whole: a break in one is an error.

    Why not the convolutions: no compiler fuses them, and their lengths, each half of the one before
    it and rounded down, made a graph for every length. GELU alone is one kernel as it is.
    """
    if all(p.device.type == "cpu" for p in model.parameters()):
        log.warning("loop.compile is for GPUs: the CPU's own kernels are left out of its graphs")
    config: Any = torch._dynamo.config
    config.recompile_limit = max(config.recompile_limit, VARIANTS)
    config.specialize_float = True  # dropouts do not change; to find out, it would trace twice
    whole = partial(torch.compile, fullgraph=True, dynamic=True, backend=backend)
    for context in contexts(model, "loop.compile"):
        for block in context.blocks:
            block.forward = whole(block.forward)
    for layer in model.modules():
        if isinstance(layer, ConvLayer) and layer.norm is not None:
            layer.activate = whole(layer.activate)  # type: ignore[method-assign]


class OnceAnUpdate:
    """The kernels of the positional convolutions, computed from their norms once an update.

    While it lasts, the micro-batches' gradients add up in the kernel itself; ``settle`` takes them
    back to the parameters. ``leaves`` is what has a gradient until then: the parameters that learn,
    and kernels in place of what they are made of.
    """

    def __init__(self, model: nn.Module, *, hold: bool = True) -> None:
        found = [module for module in model.modules() if isinstance(module, PositionalConv)]
        self.held = found if hold else []
        self.made = [module.hold() for module in self.held]
        behind = {id(p) for m in self.held for p in (m.weight_v, m.weight_g)}
        kernels = [m.held for m in self.held if m.held is not None and m.held.requires_grad]
        self.leaves: list[Tensor] = [
            p for p in model.parameters() if p.requires_grad and id(p) not in behind
        ]
        self.leaves += kernels

    def settle(self) -> None:
        """Give the parameters their gradients."""
        for module, made in zip(self.held, self.made, strict=True):
            if module.held is not None and module.held.grad is not None:
                made.backward(module.held.grad)

    def release(self) -> None:
        """Compute the kernels anew from now on."""
        for module in self.held:
            module.held = None


@contextmanager
def once_an_update(model: nn.Module, *, hold: bool = True) -> Iterator[OnceAnUpdate]:
    """``OnceAnUpdate`` for the time of an update, which may end early.

    Without ``hold`` kernels are computed by each micro-batch: their parameters may be elsewhere.
    """
    held = OnceAnUpdate(model, hold=hold)
    try:
        yield held
    finally:
        held.release()
