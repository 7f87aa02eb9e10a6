"""What the loop counts, and what it tells: metrics, the progress display, warnings.

Goes in: the ``Loss`` of every micro-batch. Goes out: a line of metrics every ``log_every`` updates,
with averages over all micro-batches since the last line and over all processes.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from w2vtool.device import add_up
from w2vtool.losses import Loss

if TYPE_CHECKING:
    from w2vtool.trainer import Training

log = logging.getLogger(__name__)
SHOWN = ("loss", "contrastive", "diversity", "penalty", "accuracy", "code_perplexity")
SHOWN_VALID = ("loss", "accuracy", "code_perplexity", "uer", "wer")


class Recorder(Protocol):
    """What the loop reports to; ``w2vtool.run.Run`` is one."""

    @property
    def stop(self) -> Any:
        """``.signal``: the number of the one to stop for, or None; ``.save``: a wish to save."""

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Write a line of metrics."""

    def progress(self, total: float, what: str, unit: str = "") -> AbstractContextManager[Any]:
        """A progress display: ``bar.update(done, **fields)``."""
        ...


class Ratios:
    """Sums of what is reported, each with the sum that it is divided by, in float64.

    They are local until they are read; reading adds up over the processes, so all must do it.
    """

    def __init__(self, sums: Mapping[str, tuple[Any, Any]] | None = None) -> None:
        self.sums: dict[str, tuple[Any, Any]] = dict(sums or {})

    def add(self, loss: Loss, *, counted: bool = True) -> None:
        """Add a micro-batch, or, if it is not ``counted``, only the names of what it has."""
        found: dict[str, tuple[Any, Any]] = {"loss": (loss.total, loss.count), **loss.rates}
        found |= {name: (value, loss.count) for name, value in loss.parts.items()}
        found |= {name: (value, 1) for name, value in loss.means.items()}
        for name, (over, under) in found.items():
            before = self.sums.get(name, (0.0, 0.0))
            if counted:
                before = (before[0] + _double(over), before[1] + _double(under))
            self.sums[name] = before

    def total(self, device: torch.device) -> dict[str, tuple[float, float]]:
        """The sums over all processes."""
        if not self.sums:
            return {}
        names = sorted(self.sums)  # the same order in every process
        flat = [value for name in names for value in self.sums[name]]
        stacked = [torch.as_tensor(value, dtype=torch.float64, device=device) for value in flat]
        values = iter(add_up(torch.stack(stacked)).tolist())
        return {name: (next(values), next(values)) for name in names}

    def read(self, device: torch.device) -> dict[str, float]:
        """The ratios over all processes."""
        return {name: over / max(under, 1) for name, (over, under) in self.total(device).items()}


def _double(value: Tensor | float) -> Tensor | float:
    return value.detach().double() if isinstance(value, Tensor) else float(value)


class Report:
    """What the loop tells: lines of metrics, the progress display, and what looks wrong."""

    def __init__(self, job: Training, recorder: Recorder, bar: Any) -> None:
        self.job, self.recorder, self.bar = job, recorder, bar
        self.fields: dict[str, str] = {}
        self.clock = time.monotonic()
        self.heard, self.skipped = job.tally.tolist()
        self.collapsed = False

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Leave the time that is spent inside out of the speed."""
        began = time.monotonic()
        yield
        self.clock += time.monotonic() - began

    def after(self, norm: Tensor) -> None:
        """Tell of an update: progress always, metrics when a line is due."""
        job = self.job
        if job.done % job.loop.log_every == 0 or job.done >= job.loop.updates:
            self._line(norm)
        self.show()

    def show(self) -> None:
        """Show how far the run is; an update that no line is due for shows the values before."""
        job = self.job
        valid = {f"valid_{k}": v for k, v in _shown(job.validated, SHOWN_VALID).items()}
        self.bar.update(job.done, **self.fields, **valid)

    def _line(self, norm: Tensor) -> None:
        job, now = self.job, time.monotonic()
        values = job.window.read(job.device)
        job.window = Ratios()
        heard, skipped = job.tally.tolist()
        speed = (heard - self.heard) / max(now - self.clock, 1e-9)
        values |= {
            "gradient_norm": norm.item(),
            "lr": job.optimizer.param_groups[0]["lr"],
            "skipped": skipped,
            "audio_h": heard / 3600,
        }
        named = {f"train/{name}": value for name, value in values.items()}
        self.recorder.metrics(job.done, {**named, "speed/audio_s_per_s": speed})
        self.fields = {**_shown(values, SHOWN), "speed": f"{speed:.0f} x real time"}
        if skipped > self.skipped:
            log.warning(
                "update %d: %d updates skipped since the last line: their gradient is not finite",
                job.done,
                skipped - self.skipped,
            )
        self._warn_of_collapse(values.get("code_perplexity"))
        self.clock, self.heard, self.skipped = now, heard, skipped

    def _warn_of_collapse(self, perplexity: float | None) -> None:
        """Say, each time it begins, that the codebook falls out of use; the loss looks fine."""
        sizes, job = self.job.spec.architecture, self.job
        if perplexity is None or job.done <= job.loop.updates // 10:
            return
        low = perplexity < 1.5 * sizes.codebook_groups
        if low and not self.collapsed:
            log.warning(
                "update %d: code perplexity %.1f of %d: the codebook collapses, and the loss falls",
                job.done,
                perplexity,
                sizes.codebook_groups * sizes.codebook_entries,
            )
        self.collapsed = low


def _shown(values: Mapping[str, float], names: Sequence[str]) -> dict[str, str]:
    """The few values that a progress line has room for."""
    return {name: f"{values[name]:.3g}" for name in names if name in values}
