"""One run, one folder: what was asked, what ran, what came out, and how it ended.

A task gets a ``Run`` and asks it for its folder, its stop flags and its voice. The folder appears
when it is first asked for: ``config.yaml`` (origins as comments, loads back), ``run.json`` (task,
command, versions, host, commit, status, notes, summary), ``metrics.jsonl``, ``log.txt``.

Why: a step's newest result has one stable path, so later steps and people find it. An older folder
is renamed to ``<step>~<stamp>``, never overwritten; a lock keeps a second process out.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import math
import os
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import FrameType, TracebackType
from typing import IO, TYPE_CHECKING, Any

from w2vtool import provenance
from w2vtool.errors import ConfigError, Stopped
from w2vtool.lock import Lock

if TYPE_CHECKING:
    from w2vtool.config import Recipe
    from w2vtool.console import Console, Progress

log = logging.getLogger("w2vtool")
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


class Stop:
    """What signals ask of a run: ``signal`` to save and stop (SIGTERM, SIGINT), ``save`` to save.

    A task that polls this must raise ``Stopped(stop.signal)`` after it has saved, and set ``save``
    back to False when it has saved and goes on (SIGUSR1).
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self.save = False


class Run:
    """What a task is given beside its config. Used as a context manager by whoever starts it.

    On ranks other than 0 it writes nothing and prints nothing. ``status`` in run.json is
    ``running``, ``done``, ``interrupted`` (it can be resumed) or ``failed``.
    """

    def __init__(
        self,
        task: str,
        folder: Path,
        *,
        step: str = "",
        work: Path | None = None,
        config_text: str = "",
        digest: str = "",
        resume: bool = False,
        recipe: Recipe | None = None,
        words: Sequence[str] = (),
        json_only: bool = False,
        parent: Run | None = None,
    ) -> None:
        self.task, self.step, self.resume = task, step or task.replace(" ", "-"), resume
        self.work = work or folder.parent
        self.recipe, self.words = recipe, tuple(words)
        self.rank = int(os.environ.get("RANK", "0"))
        self.world = int(os.environ.get("WORLD_SIZE", "1"))
        self.json_only = json_only
        self.summary: dict[str, Any] = {}
        self._folder, self._config_text, self._digest = folder, config_text, digest
        self._parent, self._stop, self._polled = parent, Stop(), False
        self._console: Console | None = parent._console if parent else None
        self._facts: dict[str, Any] = {}
        self._lock: Lock | None = None
        self._metrics: IO[str] | None = None
        self._log: logging.Handler | None = None
        self._old_handlers: dict[int, Any] = {}

    @property
    def folder(self) -> Path:
        """The run folder, made on first use. Raises ConfigError if another process has it."""
        if self._lock is None and self.rank == 0:
            self._create()
        return self._folder

    @property
    def created(self) -> bool:
        """Whether the task has used its folder."""
        return self._lock is not None

    @property
    def stop(self) -> Stop:
        """What signals ask for. Only a task that looks here is spared an immediate stop."""
        self._polled = True
        return self._stop

    def note(self, **facts: Any) -> None:
        """Add facts to run.json: hashes of inputs, the device, the parent checkpoint."""
        self._facts.setdefault("notes", {}).update(jsonable(facts))
        self._save()

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Append a line to metrics.jsonl; keys are ``group/name_unit``, NaN and infinity null."""
        if self.rank == 0:
            if self._metrics is None:
                self._metrics = _append(self.folder / "metrics.jsonl")
            row = {"step": step, "time": _now(), **jsonable(values)}
            self._metrics.write(json.dumps(row, allow_nan=False) + "\n")

    def progress(self, total: float, what: str, unit: str = "") -> Progress:
        """Progress on stderr: ``with run.progress(steps, "pretrain") as bar: bar.update(done)``."""
        return self.console.progress(total, what, unit)

    def say(self, text: str) -> None:
        """A line for people: stderr, and log.txt if the folder exists."""
        self.console.say(text)
        if self._log is not None:
            self._log.handle(log.makeRecord(log.name, logging.INFO, "", 0, text, (), None))

    def result(self, text: str) -> None:
        """A result: a line on stdout, nothing with ``--json``."""
        self.console.result(text)

    def table(self, title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
        """A result as a table on stdout, nothing with ``--json``."""
        self.console.table(title, columns, rows)

    @property
    def console(self) -> Console:
        """Where this run prints."""
        if self._console is None:
            from w2vtool.console import Console

            first = self.rank == 0
            self._console = Console(results=first and not self.json_only, people=first)
        return self._console

    def __enter__(self) -> Run:
        if threading.current_thread() is threading.main_thread():
            handler = _handler(self._stop, lambda: self._polled)
            self._old_handlers = {number: signal.signal(number, handler) for number in _SIGNALS}
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, old in self._old_handlers.items():
            signal.signal(number, old)
        if self._parent is not None and self._stop.signal is not None:
            self._parent._stop.signal = self._stop.signal
        if self._lock is not None:
            self._facts["status"] = _status(error)
            self._facts["ended"] = _now()
            if error is not None:
                self._facts["error"] = f"{type(error).__name__}: {error}"
            self._facts["summary"] = self.summary
            self._facts["versions"] = provenance.versions()  # torch was imported since
            try:
                self._save()
            except OSError as failed:  # what the task has done, or why it ended, matters more
                self.say(
                    f"warning: run.json cannot be written ({failed.strerror}): it says running"
                )
        self._close()

    def _create(self) -> None:
        """Take the folder: lock it, move an older run out of the way, write what is known."""
        folder = self._folder
        make_folder(folder, "--run-dir")
        old = record(folder)
        # what is hidden is the lock, or what a crash left of the very first file
        if old is None and any(folder.glob("[!.]*")):
            hint = "choose another --run-dir, or move what is there"
            raise ConfigError(f"not a run folder, and not empty: {folder}", hint=hint)
        if old is not None and not self.resume:
            # raises if a live process has it; held until it is moved, or two that begin at once
            # would both move what is there: the later one the new folder of the earlier
            older = Lock(folder, self.say)
            try:
                _move_away(folder, old)
            finally:
                older.close()
        folder.mkdir(parents=True, exist_ok=True)
        self._lock = Lock(folder, self.say)
        self._facts = {**self._provenance(), **self._facts}
        if old is not None and self.resume:
            self._facts["resumed_from"] = [
                *old.get("resumed_from", []),
                {key: old.get(key) for key in ("started", "ended", "status", "command")},
            ]
            self._facts["notes"] = {**old.get("notes", {}), **self._facts.get("notes", {})}
            changed = self._digest and old.get("config_sha256") not in (None, self._digest)
            if changed and (folder / "config.yaml").exists():
                kept = f"config~{_stamp()}.yaml"
                (folder / "config.yaml").replace(folder / kept)
                self.say(f"resume: the config differs from the first run's, which is now {kept}")
        else:
            self._save()  # before all else: without run.json this is not a run folder
        if self._config_text:
            write_atomic(folder / "config.yaml", self._config_text)
        self._save()
        self._log = _LogFile(folder / "log.txt", encoding="utf-8")
        self._log.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        logging.getLogger().addHandler(self._log)

    def _provenance(self) -> dict[str, Any]:
        return {
            "task": self.task,
            "step": self.step,
            "status": "running",
            "started": _now(),
            "recipe": str(self.recipe.path) if self.recipe else None,
            "variant": self.recipe.variant if self.recipe else None,
            "config_sha256": self._digest,
            "world": self.world,
            **provenance.facts(),
        }

    def _save(self) -> None:
        if self._lock is not None:
            write_atomic(self._folder / "run.json", json.dumps(self._facts, indent=2) + "\n")

    def _close(self) -> None:
        if self._log is not None:
            logging.getLogger().removeHandler(self._log)
        for file in (self._log, self._metrics, self._lock):
            if file is not None:
                with contextlib.suppress(OSError):  # lines that a full disk refused until now
                    file.close()
        self._log = self._metrics = self._lock = None


class _LogFile(logging.FileHandler):
    """log.txt; a line that a full disk refuses is on the terminal already."""

    def handleError(self, record: logging.LogRecord) -> None:
        """Say nothing: the standard one prints a traceback for each line."""


def record(folder: Path) -> dict[str, Any] | None:
    """The contents of a folder's run.json; None where there is none, {} where it is damaged."""
    try:
        found = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def new_folder(task: str) -> Path:
    """Where a run without a recipe goes: ``runs/<task>/<stamp>``."""
    base = Path("runs").absolute() / task.replace(" ", "-")
    return _free(base / _stamp())


def make_folder(folder: Path, flag: str) -> None:
    """Make a folder, if it is not there. Raises ConfigError where there can be none."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        there = next(path for path in (folder, *folder.parents) if os.path.lexists(path))
        raise ConfigError(f"not a folder: {there}", hint=f"choose another {flag}") from None
    except OSError as error:
        what, hint = f"the folder cannot be made: {error.strerror}", f"choose another {flag}"
        raise ConfigError(what, where=str(folder), hint=hint) from error


def write_atomic(path: Path, data: str | bytes) -> None:
    """Write so that a reader, or a crash, never sees half a file; makes the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    raw = data.encode("utf-8") if isinstance(data, str) else data
    number, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
    try:
        with os.fdopen(number, "wb") as file:
            file.write(raw)
            file.flush()
            os.fchmod(file.fileno(), 0o666 & ~_umask())
            os.fsync(file.fileno())
        Path(name).replace(path)
    except BaseException as error:
        Path(name).unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno and error.filename is None:  # which disk?
            error.filename = str(path)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # the new name survives a power cut too
    finally:
        os.close(folder)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def file_sha256(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def jsonable(value: Any) -> Any:
    """The value as strict JSON has it: paths are text, NaN and infinity null, scalars plain.

    Raises TypeError for what JSON cannot hold.
    """
    if value is None or isinstance(value, (str, bool, int)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): jsonable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [jsonable(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    if callable(scalar := getattr(value, "item", None)):  # numpy and torch scalars
        return jsonable(scalar())
    raise TypeError(f"{type(value).__name__} does not fit in JSON")


def _handler(stop: Stop, polled: Callable[[], bool]) -> Callable[[int, FrameType | None], None]:
    """A handler that only sets flags, if the task looks at them; else it ends.

    So does a second Ctrl-C. Why not a second SIGTERM: it is no other wish, but what comes where a
    launcher passes on what its processes got as well (systemd, ``scancel --full``), and would end
    the save that the first one asked for. A child made by fork inherits it: there SIGTERM ends the
    child, SIGINT is left to the parent.
    """
    owner = os.getpid()

    def handle(number: int, frame: FrameType | None) -> None:
        if os.getpid() != owner:
            if number == signal.SIGTERM:
                os._exit(128 + number)
        elif number == signal.SIGUSR1:
            stop.save = True
        elif polled() and (stop.signal is None or number == signal.SIGTERM):
            stop.signal = stop.signal or number
        elif number == signal.SIGINT:
            raise KeyboardInterrupt
        else:
            raise SystemExit(128 + number)

    return handle


def _status(error: BaseException | None) -> str:
    if error is None:
        return "done"
    if isinstance(error, SystemExit):  # ours, from a signal, or a task that called sys.exit
        return "interrupted" if error.code == 128 + signal.SIGTERM else "failed"
    return "interrupted" if isinstance(error, (Stopped, KeyboardInterrupt)) else "failed"


def _move_away(folder: Path, old: Mapping[str, Any]) -> None:
    started = str(old.get("started", ""))
    digits = "".join(letter for letter in started if letter.isdigit())[:14]
    stamp = f"{digits[:8]}-{digits[8:]}" if len(digits) == 14 else _stamp()
    folder.rename(_free(folder.with_name(f"{folder.name}~{stamp}")))


def _free(path: Path) -> Path:
    """The path itself, or with -2, -3, … the first that does not exist."""
    number, found = 1, path
    while found.exists():
        number += 1
        found = path.with_name(f"{path.name}-{number}")
    return found


def _append(path: Path) -> IO[str]:
    """Open for whole lines; a line that a crash cut off is ended first."""
    torn = path.exists() and path.stat().st_size > 0 and path.read_bytes()[-1:] != b"\n"
    file = path.open("a", encoding="utf-8", buffering=1)
    if torn:
        file.write("\n")
    return file


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def _stamp() -> str:
    return time.strftime("%Y%m%d-%H%M%S", time.gmtime())
