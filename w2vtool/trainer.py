"""The training loop, for pre-training, CTC and plug-ins alike.

Goes in: a model, an objective (``objective(model, batch, step) -> Loss``), a plan with its batches,
and where to report. Goes out: a trained model and its checkpoints. An update is the sum of the
gradients of ``bins`` micro-batches over all processes, divided once by the sum of their counts; so
micro-batches, accumulation and processes give the same step. Everything random comes from keys of
the plan, so that a resumed run is the run that never stopped.
"""

from __future__ import annotations

import logging
import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from w2vtool import checkpoint
from w2vtool.batches import Batch, Collate, load
from w2vtool.device import add_up, add_up_gradients, autocast
from w2vtool.errors import Stopped
from w2vtool.losses import Loss
from w2vtool.manifest import Manifest
from w2vtool.optim import adamw, learning_rate
from w2vtool.plan import Plan
from w2vtool.schema import LoopConfig, OptimConfig

log = logging.getLogger(__name__)


class Objective(Protocol):
    """What is minimised. ``model`` is in training mode, or in evaluation mode for validation."""

    def __call__(self, model: nn.Module, batch: Batch, step: int) -> Loss:
        """The loss of one micro-batch at update ``step``."""
        ...


class Recorder(Protocol):
    """What the loop reports to; ``w2vtool.run.Run`` is one."""

    stop: Any  # .signal: int | None, .save: bool

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Write a line of metrics."""

    def progress(self, total: float, what: str, unit: str = "") -> AbstractContextManager[Any]:
        """A progress display: ``bar.update(done, **fields)``."""
        ...


@dataclass(frozen=True)
class Split:
    """A manifest, its plan, and how its bins become batches."""

    manifest: Manifest
    plan: Plan
    collate: Collate


@dataclass
class Sums:
    """Running sums of what is reported; added up over processes when read."""

    total: Tensor | float = 0.0
    count: Tensor | float = 0.0
    parts: dict[str, Any] = field(default_factory=lambda: defaultdict(float))
    means: dict[str, Any] = field(default_factory=lambda: defaultdict(float))
    rates: dict[str, Any] = field(default_factory=dict)
    batches: int = 0

    def add(self, loss: Loss) -> None:
        """Add one micro-batch."""
        self.total = self.total + loss.total.detach()
        self.count = self.count + loss.count
        self.batches += 1
        for name, value in loss.parts.items():
            self.parts[name] = self.parts[name] + value
        for name, value in loss.means.items():
            self.means[name] = self.means[name] + value
        for name, (errors, reference) in loss.rates.items():
            before = self.rates.get(name, (0, 0))
            self.rates[name] = (before[0] + errors, before[1] + reference)

    def read(self, device: torch.device) -> dict[str, float]:
        """Averages: loss and parts per count, means per micro-batch."""
        flat = [self.total, self.count, self.batches, *self.parts.values(), *self.means.values()]
        flat += [number for pair in self.rates.values() for number in pair]
        stacked = torch.stack([torch.as_tensor(v, device=device).double() for v in flat])
        total, count, batches, *rest = add_up(stacked).tolist()
        values = iter(rest)
        return {
            "loss": total / max(count, 1),
            **{name: next(values) / max(count, 1) for name in self.parts},
            **{name: next(values) / max(batches, 1) for name in self.means},
            **{name: next(values) / max(next(values), 1) for name in self.rates},
        }


class BinNumbers:
    """Numbers of the bins that this process takes, from an update on, in order."""

    def __init__(self, first: int, last: int, bins: int, rank: int, world: int) -> None:
        self.first, self.last, self.bins, self.rank, self.world = first, last, bins, rank, world

    def __iter__(self) -> Iterator[int]:
        for update in range(self.first, self.last):
            yield from range(update * self.bins + self.rank, (update + 1) * self.bins, self.world)

    def __len__(self) -> int:
        mine = len(range(self.rank, self.bins, self.world))
        return mine * (self.last - self.first)


def evaluate(
    model: nn.Module,
    objective: Objective,
    split: Split,
    *,
    device: torch.device,
    precision: Any,
    rank: int,
    world: int,
    step: int,
) -> dict[str, float]:
    """Averages of the objective over one pass of a split, spread over the processes."""
    sums = Sums()
    model.eval()
    numbers = list(range(rank, split.plan.bins_per_epoch, world))
    with torch.no_grad():
        for batch in load(split.manifest, split.plan, split.collate, numbers):
            with autocast(device, precision):
                sums.add(objective(model, batch.to(device), step))
    model.train()
    return sums.read(device)


@dataclass
class Training:
    """One training run: what ``train`` needs, and how far it is."""

    model: nn.Module
    spec: checkpoint.Spec
    objective: Objective
    train: Split
    valid: Split | None
    loop: LoopConfig
    optim: OptimConfig
    folder: Path  # of the checkpoints
    device: torch.device
    rank: int = 0
    world: int = 1
    best_metric: str = "loss"
    done: int = 0
    best: float = math.inf
    seconds: float = 0.0  # of audio seen
    skipped: int = 0  # updates whose gradient was not finite

    def __post_init__(self) -> None:
        self.model.to(self.device)
        trainable = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = adamw(trainable, self.optim)

    def save(self) -> None:
        """Write a checkpoint (rank 0), keep the newest few and the best."""
        if self.rank:
            return
        state = {
            "best": self.best if math.isfinite(self.best) else None,
            "seconds": self.seconds,
            "skipped": self.skipped,
            "seed": self.loop.seed,
            "manifest": self.train.manifest.sha256,
        }
        checkpoint.save(
            self.folder, self.done, self.model, self.spec, optimizer=self.optimizer, state=state
        )
        checkpoint.prune(self.folder, self.loop.keep, checkpoint.best_step(self.folder))

    def resume(self) -> None:
        """Go back to the newest checkpoint that verifies; without any, start at 0."""
        if not any(self.folder.glob("step-*")):
            return
        loaded = checkpoint.load(self.folder, best=False)
        checkpoint.load_weights(self.model, loaded.weights, str(loaded.path))
        checkpoint.load_optimizer(loaded.path, self.model, self.optimizer)
        state = loaded.state
        self.done, self.seconds, self.skipped = state["step"], state["seconds"], state["skipped"]
        self.best = math.inf if state["best"] is None else state["best"]
        if state["manifest"] != self.train.manifest.sha256:
            log.warning("the training manifest has changed since %s was saved", loaded.path)
        log.info("resumed at update %d from %s", self.done, loaded.path)

    def update(self, batches: Iterator[Batch], sums: Sums) -> Tensor:
        """One optimizer update; gives the gradient norm. A gradient that is not finite is skipped.

        The skip happens on the device (``found_inf`` of the fused optimizer), without asking it.
        """
        self.objective_step()
        count: Tensor | float = 0.0
        for _ in range(self.rank, self.loop.bins, self.world):
            batch = next(batches).to(self.device)
            torch.manual_seed(batch.key)  # dropout: the same wherever and whenever this bin runs
            with autocast(self.device, self.loop.precision):
                loss = self.objective(self.model, batch, self.done)
            loss.total.backward()
            count = count + loss.count
            sums.add(loss)
            self.seconds += batch.seconds
        add_up_gradients(self.model)
        total = add_up(torch.as_tensor(count, dtype=torch.float32, device=self.device))
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        torch._foreach_div_(gradients, total.clamp(min=1))
        norm = nn.utils.get_total_norm(gradients)
        if self.optim.clip:
            nn.utils.clip_grads_with_norm_(
                [p for p in self.model.parameters() if p.grad is not None], self.optim.clip, norm
            )
        self.optimizer.found_inf = (~torch.isfinite(norm)).float()  # type: ignore[attr-defined]
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.done += 1
        return norm

    def objective_step(self) -> None:
        """Set the learning rate, and let the objective freeze or thaw parts of the model."""
        rate = learning_rate(self.done, self.loop.updates, self.optim)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        prepare: Callable[[nn.Module, int], None] | None = getattr(self.objective, "prepare", None)
        if prepare is not None:
            prepare(self.model, self.done)


def train(job: Training, recorder: Recorder) -> dict[str, float]:
    """Run ``job`` to its last update; gives the last validation.

    Raises Stopped after saving, when a signal asked for it.
    """
    loop = job.loop
    numbers = BinNumbers(job.done, loop.updates, loop.bins, job.rank, job.world)
    pin = job.device.type == "cuda"
    batches = load(
        job.train.manifest,
        job.train.plan,
        job.train.collate,
        numbers,  # type: ignore[arg-type]
        workers=loop.workers,
        pin=pin,
        cache_megabytes=loop.cache_megabytes,
    )
    job.model.train()
    sums, clock, heard = Sums(), time.monotonic(), job.seconds
    validated: dict[str, float] = {}
    with recorder.progress(loop.updates, job.spec.kind, "updates") as bar:
        while job.done < loop.updates:
            norm = job.update(batches, sums)
            signal = stop_signal(recorder, job)
            last = job.done == loop.updates
            if job.done % loop.log_every == 0 or last:
                values = sums.read(job.device)
                speed = (job.seconds - heard) * job.world / (time.monotonic() - clock)
                values |= {"gradient_norm": norm.item(), "lr": job.optimizer.param_groups[0]["lr"]}
                recorder.metrics(
                    job.done,
                    {f"train/{k}": v for k, v in values.items()}
                    | {"speed/audio_s_per_s": speed, "audio_h": job.seconds * job.world / 3600},
                )
                warn(values, job)
                bar.update(job.done, **shown(values), speed=f"{speed:.0f} x real time")
                sums, clock, heard = Sums(), time.monotonic(), job.seconds
            if job.valid and (job.done % loop.valid_every == 0 or last):
                validated = validate(job, recorder)
                bar.update(job.done, **{f"valid_{k}": v for k, v in shown(validated).items()})
                clock, heard = time.monotonic(), job.seconds
            if job.done % loop.save_every == 0 or last or signal or recorder.stop.save:
                recorder.stop.save = False
                job.save()
            if signal and not last:
                raise Stopped(signal)
    return validated


def validate(job: Training, recorder: Recorder) -> dict[str, float]:
    """Validate, record, and remember the best step (its checkpoint is saved at once)."""
    assert job.valid is not None
    values = evaluate(
        job.model,
        job.objective,
        job.valid,
        device=job.device,
        precision=job.loop.precision,
        rank=job.rank,
        world=job.world,
        step=job.done,
    )
    recorder.metrics(job.done, {f"valid/{k}": v for k, v in values.items()})
    if values[job.best_metric] < job.best:
        job.best = values[job.best_metric]
        if job.rank == 0:
            job.folder.mkdir(parents=True, exist_ok=True)
            checkpoint.mark_best(job.folder, job.done, job.best_metric, job.best)
            job.save()
    return values


def stop_signal(recorder: Recorder, job: Training) -> int | None:
    """The signal that any process got: all stop at the same update."""
    mine = recorder.stop.signal or 0
    if job.world == 1:
        return mine or None
    return int(add_up(torch.tensor(float(mine), device=job.device)).item() / job.world) or (
        mine or None
    )


def shown(values: Mapping[str, float]) -> dict[str, str]:
    """The few values that a progress line has room for."""
    names = (
        "loss",
        "contrastive",
        "diversity",
        "penalty",
        "accuracy",
        "code_perplexity",
        "uer",
        "wer",
    )
    return {name: f"{values[name]:.3g}" for name in names if name in values}


def warn(values: Mapping[str, float], job: Training) -> None:
    """Say what the numbers mean when they mean trouble."""
    if not math.isfinite(values["gradient_norm"]):
        job.skipped += 1
        log.warning("update %d: the gradient is not finite; skipped", job.done)
    perplexity = values.get("code_perplexity")
    groups = job.spec.architecture.codebook_groups
    if perplexity is not None and job.done > job.loop.updates // 10 and perplexity < 1.5 * groups:
        log.warning(
            "update %d: code perplexity %.1f of %d: the codebook collapses (and the loss falls)",
            job.done,
            perplexity,
            groups * job.spec.architecture.codebook_entries,
        )
