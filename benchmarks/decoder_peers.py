"""Processes that ``decoder.py`` asks, and the interpreter for a package that needs its own.

Goes in: a program of ``decoder_worker.py``. Goes out: its answers. A side that cannot be loaded is
``Absent``, with the reason.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
WORKER = ROOT / "benchmarks" / "decoder_worker.py"
PACKAGES = ("pyctcdecode", "kenlm", "numpy<2")
ADVICE = (
    "give --install, or make an environment with Python 3.12 or older (python3 -m venv DIR; "
    "DIR/bin/pip install pyctcdecode kenlm 'numpy<2', which needs cmake and a C++ compiler) and "
    "give --peers-python DIR/bin/python"
)


class Absent(Exception):
    """A side that cannot run, and why."""


class Answer(NamedTuple):
    """What a worker found, and the seconds that took."""

    found: list[tuple[str, float]]
    cpu_s: float
    wall_s: float


class Worker:
    """A side in a process of its own. Raises Absent if it does not come up, or ends early."""

    def __init__(
        self,
        program: str,
        task: Path,
        options: dict[str, Any],
        peers: Path | None,
        cache: Path,
    ) -> None:
        if program == "pyctcdecode" and peers is None:
            raise Absent(ADVICE)
        python = str(peers if program == "pyctcdecode" else sys.executable)
        one = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        environment = {**os.environ, **one, "PYTHONHASHSEED": "0", "W2VTOOL_CACHE": str(cache)}
        environment.pop("PYTHONPATH", None)
        if program != "pyctcdecode":
            environment["PYTHONPATH"] = str(ROOT)
        errors, name = tempfile.mkstemp(dir=task.parent)
        self._errors = Path(name)
        try:
            self._process = subprocess.Popen(
                [python, str(WORKER), program, str(task), json.dumps(options)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env=environment,
                text=True,
            )
        except OSError as error:
            raise Absent(f"{python}: {error.strerror}") from None
        finally:
            os.close(errors)
        try:
            self.loading: dict[str, float] = self._answer()
        except Absent:
            self.close()
            raise

    def decode(self, options: dict[str, Any], part: str, utterances: int) -> Answer:
        """Decode the first utterances of dev or test. Raises Absent if the process ends."""
        asked = {"options": options, "part": part, "utterances": utterances}
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # the reason is read below
            self._process.stdin.write(json.dumps(asked) + "\n")
            self._process.stdin.flush()
        return Answer(**self._answer())

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if line:
            return json.loads(line)
        self._process.wait()
        lines = self._errors.read_text().strip().splitlines()
        raise Absent(lines[-1] if lines else f"ended with {self._process.returncode}")

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the process, which reads until its input ends."""
        assert self._process.stdin is not None and self._process.stdout is not None
        with suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()


def interpreter(given: Path | None, work: Path | None) -> Path | None:
    """An interpreter with pyctcdecode: the given one, or a new one in ``work``, else this one."""
    if given is not None:
        return given
    if work is not None:
        return installed(work / "peers")
    here = [sys.executable, "-c", "import kenlm, pyctcdecode"]
    done = subprocess.run(here, capture_output=True, check=False)
    return Path(sys.executable) if done.returncode == 0 else None


def installed(folder: Path) -> Path | None:
    """The interpreter of an environment with what pyctcdecode needs; made if it is not there."""
    python = folder / "bin" / "python"
    if not (folder / "complete").exists():
        print(f"installing {', '.join(PACKAGES)} into {folder}", file=sys.stderr, flush=True)
        commands = (
            [sys.executable, "-m", "venv", str(folder)],
            [str(python), "-m", "pip", "install", "--quiet", *PACKAGES],
        )
        for command in commands:
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                last = (done.stderr or done.stdout).strip().splitlines()[-1:]
                print(f"{' '.join(command)}: {' '.join(last)}", file=sys.stderr, flush=True)
                return None
        (folder / "complete").touch()
    return python
