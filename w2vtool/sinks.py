"""Where metrics go beside ``metrics.jsonl``, and how none of it can stop the training.

Goes in: lines of metrics. Goes out: ``metrics.jsonl`` and run.json through the run, and TensorBoard
where it is asked for.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from w2vtool.errors import ConfigError
from w2vtool.metrics import Recorder

if TYPE_CHECKING:
    from w2vtool.trainer import Training

log = logging.getLogger(__name__)


class Sink(Protocol):
    """Something that takes lines of metrics. It may fail in any way that it likes."""

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Take a line."""

    def close(self) -> None:
        """Write what is left."""


class TensorBoard:
    """Event files for TensorBoard, in ``folder``.

    A resumed run hides what was written after ``step``, where it goes on. Raises ConfigError when
    TensorBoard is not installed.
    """

    def __init__(self, folder: Path, step: int) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ConfigError(
                f"loop.tensorboard is on, and TensorBoard cannot be imported ({error})",
                hint="pip install 'w2vtool[tensorboard]', or loop.tensorboard=false",
            ) from error
        self.writer: Any = SummaryWriter(str(folder), purge_step=step + 1 if step else None)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """A scalar for each value."""
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)
        self.writer.flush()

    def close(self) -> None:
        """Write what is left."""
        self.writer.close()


class Outlets:
    """A recorder with sinks beside it; neither can stop the training by failing.

    The recorder's own files are tried again with every line, as a full disk may have room again. A
    sink that fails is dropped: nothing is known of the state that it is in.
    """

    def __init__(self, recorder: Recorder, sinks: Sequence[Sink] = ()) -> None:
        self.recorder, self.sinks = recorder, list(sinks)
        self.failing = False

    @property
    def stop(self) -> Any:
        """What signals ask for."""
        return self.recorder.stop

    def progress(self, total: float, what: str, unit: str = "") -> AbstractContextManager[Any]:
        """The recorder's progress display."""
        return self.recorder.progress(total, what, unit)

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Write a line everywhere."""
        try:
            self.recorder.metrics(step, values)
        except OSError as error:
            self._warn(error)
        else:
            self.failing = False
        for sink in list(self.sinks):
            self._try(sink, "write", step, values)

    def note(self, **facts: Any) -> None:
        """Facts for run.json."""
        try:
            self.recorder.note(**facts)
        except OSError as error:
            self._warn(error)

    def close(self) -> None:
        """Close the sinks."""
        for sink in list(self.sinks):
            self._try(sink, "close")

    def _warn(self, error: OSError) -> None:
        if not self.failing:
            log.warning("metrics cannot be written (%s); the training goes on", error)
        self.failing = True

    def _try(self, sink: Sink, what: str, *words: Any) -> None:
        try:
            getattr(sink, what)(*words)
        except Exception as error:  # noqa: BLE001 - foreign code, which has errors of its own
            log.warning(
                "%s failed and gets no more metrics; the training goes on (%s: %s)",
                type(sink).__name__,
                type(error).__name__,
                error,
            )
            self.sinks.remove(sink)


@contextmanager
def outlets(job: Training, recorder: Recorder) -> Iterator[Outlets]:
    """The recorder, and TensorBoard where it is asked for, until the end of the training."""
    sinks = []
    if job.tensorboard and job.rank == 0:
        sinks.append(TensorBoard(job.folder.parent / "tensorboard", job.done))
    out = Outlets(recorder, sinks)
    try:
        yield out
    finally:
        out.close()
