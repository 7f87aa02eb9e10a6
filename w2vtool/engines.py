"""Where the parts of a job run: here, in a pool of processes, under torchrun, or on Ray.

Goes in: ``Work`` and its ``Part``s. Goes out: a finished file for every part, and their lines.
Parts, files and results are the same on every engine, so that a job which was stopped on one can be
finished on another.

Why Ray, and no scheduler of our own: it restarts processes that die and knows the machines of a
cluster. Its processes write into the same folder, which all machines must see.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch

from w2vtool import device as devices
from w2vtool.errors import ConfigError, DataError, Stopped
from w2vtool.parts import Compute, Line, Part, Work, finish, is_done, read

log = logging.getLogger(__name__)

Engine = Literal["local", "ray"]
Tick = Callable[[int], None]
T = TypeVar("T")
ATTEMPTS = 3  # pools, and processes of one part on Ray, that may die before the job ends
POLL_SECONDS = 0.5  # how soon a signal is heard


def run(
    work: Work,
    parts: Sequence[Part],
    folder: Path,
    *,
    engine: Engine = "local",
    jobs: int = 1,
    device: str = "auto",
    on_progress: Tick = lambda done: None,
    stop: Any = None,
) -> Iterator[list[Line]]:
    """Do the parts that are not done, then give the lines of every part, in order.

    Under torchrun each process does its share, and only the first one gives lines. ``stop`` is a
    ``run.Stop``. Raises Stopped when a signal came (finished parts stay), what the work raises, and
    DataError when processes die again and again.
    """
    with devices.processes(devices.choose(device)) as (rank, world):
        mine = [part for part in parts if part.number % world == rank]
        if rank == 0:
            sweep(folder)
        devices.add_up(torch.zeros(1, device=devices.choose(device)))  # nobody writes before that
        left = [part for part in mine if not is_done(folder, part)]
        done = sum(len(part.rows) for part in mine) - sum(len(part.rows) for part in left)
        count = _Count(done, on_progress)
        if left and engine == "ray":
            _on_ray(work, left, folder, jobs, device, count, stop)
        elif left and jobs > 1:
            _in_pool(work, left, folder, jobs, device, count, stop)
        elif left:
            _here(work, left, folder, device, count, stop)
        devices.add_up(torch.zeros(1, device=devices.choose(device)))  # all have finished
        for part in parts if rank == 0 else ():
            lines = read(folder, part)
            if lines is None:
                part.path(folder).unlink(missing_ok=True)  # its first line may look finished
                what = "a finished part has gone, or does not show what was written"
                raise DataError(what, where=str(part.path(folder)), hint="run the command again")
            yield lines


def sweep(folder: Path) -> None:
    """Delete halves of files that dead processes left, by who has the folder to himself."""
    for path in folder.rglob(".*.part"):
        path.unlink(missing_ok=True)


class _Count:
    """Rows that are done, told as they come."""

    def __init__(self, done: int, tell: Tick) -> None:
        self.done, self.tell = done, tell
        tell(done)

    def add(self, rows: int) -> None:
        self.done += rows
        self.tell(self.done)


def _stopped(stop: Any) -> None:
    if stop is not None and stop.signal is not None:
        raise Stopped(stop.signal)


def _here(
    work: Work, parts: Sequence[Part], folder: Path, device: str, count: _Count, stop: Any
) -> None:
    """One after the other, in this process."""
    compute = work.start(device)

    def tick(rows: int) -> None:
        count.add(rows)
        _stopped(stop)

    for part in parts:
        finish(folder, part, compute, tick)


# -- a pool of processes --------------------------------------------------------------------------


class _Cancelled(Exception):
    """The parent wants no more of this part."""


def _in_pool(
    work: Work,
    parts: Sequence[Part],
    folder: Path,
    jobs: int,
    device: str,
    count: _Count,
    stop: Any,
) -> None:
    """In ``jobs`` processes, which share the CPU's cores, or the GPUs."""
    for attempt in range(1, ATTEMPTS + 1):
        left = [part for part in parts if not is_done(folder, part)]
        if not left:  # what died had finished its last part
            return
        try:
            _pool_once(work, left, folder, min(jobs, len(left)), device, count, stop)
        except BrokenProcessPool:
            log.warning("a process died (attempt %d of %d)", attempt, ATTEMPTS)
        else:
            return
    raise DataError(
        f"processes of this job have died {ATTEMPTS} times",
        hint="out of memory? lower --jobs or batch_seconds; what is done is kept",
    )


def _pool_once(
    work: Work,
    parts: Sequence[Part],
    folder: Path,
    jobs: int,
    device: str,
    count: _Count,
    stop: Any,
) -> None:
    context = multiprocessing.get_context("spawn")
    cancel, number = context.Event(), context.Value("i", 0)
    settings = (work, folder, device, jobs, cancel, number)
    with ProcessPoolExecutor(
        jobs, mp_context=context, initializer=_open, initargs=settings
    ) as pool:
        waiting: dict[Future[None], Part] = {pool.submit(_do, part): part for part in parts}
        try:
            while waiting:
                done, _ = wait(waiting, POLL_SECONDS, FIRST_COMPLETED)
                for future in done:
                    part = waiting.pop(future)
                    future.result()
                    count.add(len(part.rows))
                _stopped(stop)
        except BaseException:
            cancel.set()
            pool.shutdown(cancel_futures=True)
            raise


class _Process:
    """What a process of the pool keeps."""

    start: Callable[[], Compute]
    compute: Compute | None = None
    folder: Path
    cancel: Any = None


def _open(work: Work, folder: Path, device: str, jobs: int, cancel: Any, number: Any) -> None:
    """Start a process: signals are the parent's, and it ends with the parent."""
    for name in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(name, signal.SIG_IGN)
    threading.Thread(target=_follow_parent, daemon=True).start()
    with number.get_lock():
        mine, number.value = number.value, number.value + 1
    # at the first part, where an error reaches the parent as what it is
    _Process.start = partial(work.start, _share(device, mine, jobs))
    _Process.folder, _Process.cancel = folder, cancel


def _follow_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
    os._exit(1)


def _share(device: str, number: int, jobs: int) -> str:
    """The device of process ``number``; processes on a CPU divide its cores."""
    chosen = devices.choose(device)
    if chosen.type == "cuda":
        return f"cuda:{number % torch.cuda.device_count()}"
    torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // jobs))
    return device


def _do(part: Part) -> None:
    if _Process.compute is None:
        _Process.compute = _Process.start()
    finish(_Process.folder, part, _Process.compute, _go_on)


def _go_on(rows: int) -> None:
    if _Process.cancel.is_set():
        raise _Cancelled


def heed(done: object = None) -> None:
    """End work within a row where the parent of this process wants no more; long rows call it."""
    if _Process.cancel is not None and _Process.cancel.is_set():
        raise _Cancelled


# -- Ray ------------------------------------------------------------------------------------------


class _Actor:
    """A process of a Ray cluster; Ray starts it again where it dies."""

    def __init__(self, start: Callable[[], Callable[[Any], None]], threads: int) -> None:
        torch.set_num_threads(threads)
        self.start = start
        self.work: Callable[[Any], None] | None = None

    def ready(self) -> None:
        """Answer, once there is a place to run on."""

    def do(self, item: Any) -> None:
        """Do one thing."""
        if self.work is None:  # here, and not above, an error reaches the caller as what it is
            self.work = self.start()
        self.work(item)


@dataclass(frozen=True)
class _Finish:
    """What an actor does for ``run``: parts."""

    work: Work
    folder: Path
    device: str

    def __call__(self) -> Callable[[Part], None]:
        compute = self.work.start(self.device)

        def do(part: Part) -> None:
            if not is_done(self.folder, part):  # Ray repeats what it has not heard the end of
                finish(self.folder, part, compute)

        return do


def _on_ray(
    work: Work,
    parts: Sequence[Part],
    folder: Path,
    jobs: int,
    device: str,
    count: _Count,
    stop: Any,
) -> None:
    """On the cluster that RAY_ADDRESS names, or on a Ray of this machine."""
    gpus = 0 if device == "cpu" else int(_ray().cluster_resources().get("GPU", 0) > 0)
    start = _Finish(work, folder.absolute(), "auto" if gpus else "cpu")
    for part in on_ray(start, parts, jobs=jobs, gpus=gpus, poll=lambda: _stopped(stop)):
        count.add(len(part.rows))


def on_ray(
    start: Callable[[], Callable[[T], None]],
    items: Sequence[T],
    *,
    jobs: int,
    gpus: int = 0,
    poll: Callable[[], None] = lambda: None,
) -> Iterator[T]:
    """Do something with every item, in ``jobs`` processes of a Ray cluster; gives what is done.

    ``start`` is called once in each process, and gives what does it. It may be done twice, where a
    process dies. ``poll`` is called now and then, and may raise to stop.
    """
    ray = _ray()
    threads = 1 if gpus else max(1, len(os.sched_getaffinity(0)) // jobs)
    actor = ray.remote(
        num_cpus=1 if gpus else threads,
        num_gpus=gpus,
        max_restarts=-1,
        max_task_retries=ATTEMPTS - 1,  # of one part: what always kills would go on for ever
    )(_Actor)
    actors = [actor.remote(start, threads) for _ in range(min(jobs, len(items)))]
    waiting: dict[Any, tuple[Any, int]] = {a.ready.remote(): (a, -1) for a in actors}
    begun = done = 0
    try:
        while done < len(items):
            poll()
            finished, _ = ray.wait(list(waiting), num_returns=1, timeout=POLL_SECONDS)
            for reference in finished:
                process, number = waiting.pop(reference)
                _get(ray, reference)
                if number >= 0:
                    done += 1
                    yield items[number]
                if begun < len(items):  # an actor without a place is never given anything
                    waiting[process.do.remote(items[begun])] = (process, begun)
                    begun += 1
    finally:
        for process in actors:
            ray.kill(process)


def _get(ray: Any, reference: Any) -> None:
    """Raise what the work has raised, as it was."""
    try:
        ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        raise error.cause from None
    except ray.exceptions.RayActorError as error:
        raise DataError(
            f"a process of the Ray cluster cannot start, or has died {ATTEMPTS} times: {error}",
            hint="out of memory? lower batch_seconds; what is done is kept",
        ) from error


def _ray() -> Any:
    """Ray, connected. Raises ConfigError where it is not installed."""
    try:
        import ray
    except ImportError as error:
        raise ConfigError(
            f"engine: ray, and Ray cannot be imported ({error})",
            hint="pip install 'w2vtool[ray]', or engine=local",
        ) from error
    if not ray.is_initialized():
        ray.init(log_to_driver=False, logging_level=logging.WARNING)
    return ray
