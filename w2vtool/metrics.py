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
SHOWN = (
    *("loss", "contrastive", "diversity", "penalty", "accuracy", "code_perplexity"),
    "gradient_norm",
)
SHOWN_VALID = ("loss", "accuracy", "code_perplexity", "uer", "wer")
COLLAPSE_AFTER = 0.1  # share of the updates
LATEST = 20_000  # updates after which every alarm may ring, however long the run
AT_CHANCE = 0.99  # share of the loss at chance
EMPTY = 0.95  # share of transcripts without a letter


class Recorder(Protocol):
    """What the loop reports to; ``w2vtool.run.Run`` is one."""

    @property
    def stop(self) -> Any:
        """``.signal``: the number of the one to stop for, or None; ``.save``: a wish to save."""

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Write a line of metrics."""

    def note(self, **facts: Any) -> None:
        """Facts for run.json."""

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


class Alarms:
    """What looks wrong although nothing fails: told each time that it begins."""

    def __init__(self) -> None:
        self.ringing: set[str] = set()

    def ring(
        self, recorder: Recorder, step: int, found: Mapping[str, str | None]
    ) -> dict[str, float]:
        """Warn of what begins; gives ``alarm/…`` for all that is wrong, for a line of metrics.

        ``found`` has a text for what is wrong, and None for what is not.
        """
        for name, text in found.items():
            if text is not None and name not in self.ringing:
                log.warning("update %d: %s", step, text)
                recorder.note(**{f"alarm_{name}": step})
        wrong = {name for name, text in found.items() if text is not None}
        self.ringing = (self.ringing - found.keys()) | wrong
        return {f"alarm/{name}": 1.0 for name in sorted(wrong)}


def wrong_in_training(job: Training, values: Mapping[str, float]) -> dict[str, str | None]:
    """What is wrong by the averages of a line of metrics, by name; None for what is not."""
    idle = not values["lr"] and job.done < job.loop.updates
    return {
        "collapse": _collapse(job, values),
        "chance": _chance(job, values),
        "no_rate": "the learning rate is 0: nothing is learned any more" if idle else None,
        "all_skipped": None
        if values["accepted"]
        else "all updates since the last line were skipped; lower optim.lr, or look for bad audio",
    }


def wrong_in_validation(job: Training, values: Mapping[str, float]) -> dict[str, str | None]:
    """The same, by the averages of a validation."""
    empty = values.get("empty", 0.0)
    if not (empty > EMPTY and _late(job, job.guard.alarms_after)):
        return {"blank_only": None}
    text = (
        f"{empty:.0%} of the greedy transcripts are empty: the model says blank only; it may leave "
        "this plateau yet, and a higher optim.lr, more updates, finetune-ctc's blank_bias or a "
        "better model.init help"
    )
    return {"blank_only": text}


def _late(job: Training, share: float) -> bool:
    return job.done > min(share * job.loop.updates, LATEST)


def _collapse(job: Training, values: Mapping[str, float]) -> str | None:
    """The codebook falls out of use: the loss falls with it and looks fine."""
    code, soft = values.get("code_perplexity"), values.get("prob_perplexity")
    if code is None or not _late(job, COLLAPSE_AFTER):
        return None
    sizes = job.spec.architecture
    if not min(code, code if soft is None else soft) < job.guard.collapse * sizes.codebook_groups:
        return None
    also = "" if soft is None else f" (soft: {soft:.1f})"
    return (
        f"code perplexity {code:.1f}{also} of {sizes.codebook_groups * sizes.codebook_entries}: "
        "the codebook collapses, and the loss falls; try a lower optim.lr, a longer optim.warmup, "
        "more audio in an update, a higher objective.diversity_weight"
    )


def _chance(job: Training, values: Mapping[str, float]) -> str | None:
    """The contrastive loss is that of guessing, which the objective knows (``chance``)."""
    chance, loss = getattr(job.objective, "chance", None), values.get("contrastive")
    if chance is None or loss is None or not _late(job, job.guard.alarms_after):
        return None
    if not loss >= AT_CHANCE * chance:
        return None
    return (
        f"contrastive loss {loss:.3f} is at chance ({chance:.3f}): nothing is learned yet; try a "
        "shorter optim.warmup, another optim.lr, more audio in an update, and listen to the audio"
    )


class Report:
    """What the loop tells: lines of metrics, the progress display, and what looks wrong."""

    def __init__(self, job: Training, recorder: Recorder, bar: Any) -> None:
        self.job, self.recorder, self.bar = job, recorder, bar
        self.fields: dict[str, str] = {}
        self.clock = time.monotonic()
        self.heard, self.skipped = job.tally.tolist()
        self.waited = job.waited

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
        passed = max(now - self.clock, 1e-9)
        speed, waiting = (heard - self.heard) / passed, (job.waited - self.waited) / passed
        guards = job.guards.line()
        values |= {
            "gradient_norm": norm.item(),
            "lr": max(group["lr"] for group in job.optimizer.param_groups),
            "skipped": skipped,
            "spikes": guards["spikes"],
            "rollbacks": job.guards.rollbacks,
            "audio_h": heard / 3600,
        }
        wrong = wrong_in_training(job, {**values, "accepted": guards["fresh"]})
        job.quarantine.meet()
        self.recorder.metrics(
            job.done,
            {
                **{f"train/{name}": value for name, value in values.items()},
                "data/quarantined": len(job.quarantine.ids),
                "speed/audio_s_per_s": speed,
                "speed/data_wait": waiting,
                **job.alarms.ring(self.recorder, job.done, wrong),
            },
        )
        self.fields = {
            **_shown(values, SHOWN),
            "speed": f"{speed:.0f} x real time",
            "data_wait": f"{waiting:.0%}",
        }
        if skipped > self.skipped:
            log.warning(
                "update %d: %d updates skipped since the last line: their gradient is not finite, "
                "or many times the usual (spikes: %d so far)",
                job.done,
                skipped - self.skipped,
                guards["spikes"],
            )
        self.clock, self.heard, self.skipped, self.waited = now, heard, skipped, job.waited
        job.quarantine.check(job.guard.bad_share, job.train.plan.utterances)


def _shown(values: Mapping[str, float], names: Sequence[str]) -> dict[str, str]:
    """The few values that a progress line has room for."""
    return {name: f"{values[name]:.3g}" for name in names if name in values}
