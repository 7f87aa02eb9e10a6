"""AdamW and the learning-rate schedules of fairseq's recipes."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import nn

from w2vtool.schema import OptimConfig


def adamw(parameters: Iterable[nn.Parameter], config: OptimConfig) -> torch.optim.AdamW:
    """Fused AdamW with decoupled decay on all parameters, as in fairseq.

    It differs from fairseq's Adam in where eps is added, which matters in the first few hundred
    updates only.
    """
    return torch.optim.AdamW(
        list(parameters),
        lr=config.lr,
        betas=config.betas,
        eps=config.eps,
        weight_decay=config.weight_decay,
        fused=True,
    )


def learning_rate(update: int, updates: int, config: OptimConfig) -> float:
    """Rate of update number ``update`` (from 0) of ``updates``.

    polynomial: linear up, linear down to 0. tri-stage: linear from 1 % up, hold, then exponential
    down to ``floor`` of the peak (the paper says linear, the code is exponential). constant: linear
    up, then flat.
    """
    warmup = round(config.warmup * updates)  # whole updates: a part of one would overshoot
    if config.schedule == "tri-stage":
        hold_end = warmup + round(config.hold * updates)
        if update < warmup:
            return config.lr * (0.01 + 0.99 * update / warmup)
        if update < hold_end:
            return config.lr
        decay = (update - hold_end) / max(1.0, updates - hold_end)
        return config.lr * math.exp(math.log(config.floor) * min(1.0, decay))
    if update < warmup:
        return config.lr * max(update, 1) / warmup  # the first update moves too, as in fairseq
    if config.schedule == "constant":
        return config.lr
    return config.lr * max(0.0, 1 - (update - warmup) / max(1.0, updates - warmup))
