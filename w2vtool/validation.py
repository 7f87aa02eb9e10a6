"""Validation: averages of the objective over a split, and what follows from them.

Goes in: a training run between two updates. Goes out: a line of metrics, alarms, and which steps
are the best so far.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch

from w2vtool import sharding
from w2vtool.device import add_up, autocast
from w2vtool.metrics import Ratios, Recorder, wrong_in_validation

if TYPE_CHECKING:
    from w2vtool.trainer import Training


def evaluate(job: Training, stop: Any) -> dict[str, float] | None:
    """Averages of the objective over the validation split; None when a signal came."""
    job.writer.wait()  # its thread is not to be there when loader processes are forked
    ratios = Ratios()
    job.model.eval()
    with torch.no_grad(), sharding.gathered(job.model):
        for batch, counted in job.valid_pass:
            job.wishes.heed(add_up(job.wishes.mine(stop)))
            if job.signal:
                break
            with autocast(job.device, job.loop.precision):
                loss = job.objective(job.model, batch.to(job.device), job.done)
            ratios.add(loss, counted=counted)
    job.model.train()
    return None if job.signal else ratios.read(job.device)


def validate(job: Training, recorder: Recorder) -> bool:
    """Validate this step and record it, unless a signal comes; gives whether it is a best one.

    A step that is as good as the best so far is better: it has learned for longer.
    """
    values = evaluate(job, recorder.stop)
    if values is None:
        return False
    job.due, job.validated = False, values
    alarms = job.alarms.ring(recorder, job.done, wrong_in_validation(job, values))
    named = {f"valid/{name}": value for name, value in values.items()}
    recorder.metrics(job.done, {**named, **alarms})
    value = values[job.best_metric]
    if math.isfinite(value):
        ranked = sorted([(value, job.done), *job.best_steps], key=lambda b: (b[0], -b[1]))
        job.best_steps = ranked[: job.loop.keep_best]
    return (value, job.done) in job.best_steps
