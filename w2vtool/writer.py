"""Checkpoints written behind the back of the training, one at a time.

Goes in: a model and its optimizer, between two updates. Goes out: a checkpoint, some time later.
Tensors are copied to host memory before ``save`` returns, or, from CUDA, before the device gets to
the next update; a thread writes the copies, reads them back, and only then deletes older ones.

Why a full disk does not stop a run: the weights are worth more than their copy. The save is left
out with an alarm, what is on the disk stays, and the next save tries again; only a run that ends
without having saved its last state fails.
"""

from __future__ import annotations

import errno
import logging
import os
import shutil
from collections.abc import Iterable, Mapping
from concurrent import futures
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from w2vtool import checkpoint
from w2vtool.errors import CheckpointError, Stopped

log = logging.getLogger(__name__)
_FULL = (errno.ENOSPC, errno.EDQUOT)


class _Taken(NamedTuple):
    """What a checkpoint is made of, at the time of ``save``."""

    step: int
    weights: dict[str, Tensor]
    moments: dict[str, Tensor] | None
    spec: checkpoint.Spec
    state: Mapping[str, Any]
    protected: frozenset[int]
    copied: torch.cuda.Event | None  # when this has come, the tensors are on the host

    @property
    def size(self) -> int:
        """Bytes of the tensors."""
        held = [*self.weights.values(), *(self.moments or {}).values()]
        return sum(value.nbytes for value in held)


class Writer:
    """Writes the checkpoints of one run: the newest ``keep``, the best ``keep_best``, milestones.

    Only the first process of a run saves. As a context manager it waits at the end. ``alarms`` has
    a line for each save that a full disk made impossible, and for each failure to delete;
    ``threaded=False`` writes before ``save`` returns.
    """

    def __init__(
        self,
        folder: Path,
        *,
        keep: int = 2,
        keep_best: int = 1,
        milestone_every: int = 0,
        threaded: bool = True,
    ) -> None:
        self.folder, self.keep = folder, keep
        self.keep_best, self.milestone_every = keep_best, milestone_every
        self.threaded = threaded
        self.alarms: list[str] = []
        self._skipped: int | None = None  # the step of the last save, if there was no room for it
        self._pending: futures.Future[None] | None = None

    def save(
        self,
        step: int,
        model: nn.Module,
        spec: checkpoint.Spec,
        *,
        optimizer: torch.optim.Optimizer | None = None,
        state: Mapping[str, Any] | None = None,
        protected: Iterable[int] = (),
    ) -> None:
        """Begin to write ``step-…`` as ``checkpoint.save`` does, after the one before it.

        The checkpoints of ``protected`` steps stay, too. Raises CheckpointError for the one before,
        when the disk failed otherwise than by being full.
        """
        self.wait()
        weights, moments = checkpoint.tensors_of(model, optimizer)
        copied = None
        if self.threaded:
            if any(value.is_cuda for value in weights.values()):
                copied = torch.cuda.Event()
            weights, moments = _copies(weights), _copies(moments) if moments is not None else None
            if copied is not None:
                copied.record()
        taken = _Taken(step, weights, moments, spec, state or {}, frozenset(protected), copied)
        if not self.threaded:
            self._write(taken)
            return
        thread = futures.ThreadPoolExecutor(1, "checkpoint")  # waited for when Python ends
        self._pending = thread.submit(self._write, taken)
        thread.shutdown(wait=False)

    def wait(self) -> None:
        """Return when what was given to ``save`` is on the disk, or was left out with an alarm.

        Raises CheckpointError when it could not be written for another reason than a full disk.
        """
        if self._pending is not None:
            self._pending.result()
            self._pending = None

    def close(self) -> None:
        """Wait. Raises CheckpointError, too, when there was no room for the last save."""
        self.wait()
        if self._skipped is not None:
            raise CheckpointError(
                f"update {self._skipped} could not be saved: the disk is full",
                where=str(self.folder),
                hint="make room, and go on from the checkpoint before it with --resume",
            )

    def __enter__(self) -> Writer:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None or isinstance(error, Stopped):
            self.close()
        elif self._pending is not None:
            futures.wait([self._pending])  # the error that is on its way says more than this one's

    def _write(self, taken: _Taken) -> None:
        if taken.copied is not None:
            taken.copied.synchronize()
        try:
            self._need(taken.size)
            path = checkpoint.write_step(
                self.folder, taken.step, taken.weights, taken.spec, taken.state, taken.moments
            )
        except OSError as exc:
            if exc.errno not in _FULL:
                raise CheckpointError(
                    f"update {taken.step} cannot be saved: {exc.strerror}",
                    where=str(exc.filename or self.folder),
                    hint="see to the disk; --resume goes on from what was saved before",
                ) from exc
            self._skipped = taken.step
            self.alarms.append(f"update {taken.step} is not saved: {exc.strerror}")
            log.error("%s; training goes on, make room on %s", self.alarms[-1], self.folder)
            return
        self._skipped = None
        checkpoint.verify(path)
        try:
            checkpoint.prune(
                self.folder,
                self.keep,
                keep_best=self.keep_best,
                milestone_every=self.milestone_every,
                newest=taken.step,
                protected=taken.protected,
            )
        except OSError as exc:
            self.alarms.append(f"older checkpoints cannot be deleted: {exc}")
            log.error(self.alarms[-1])

    def _need(self, size: int) -> None:
        """Raise OSError before a disk is filled that others write to as well, the metrics first."""
        there = next(path for path in (self.folder, *self.folder.parents) if path.exists())
        if shutil.disk_usage(there).free < size:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _copies(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors on the host, as they are now; from CUDA, as soon as the device gets to it.

    Why nothing waits here: what the device does next with a tensor it does after the copy.
    """
    return {
        name: torch.empty_like(
            value, device="cpu", memory_format=torch.contiguous_format, pin_memory=value.is_cuda
        ).copy_(value.detach(), non_blocking=True)
        for name, value in tensors.items()
    }
