"""The real command in a process of its own, in an empty folder."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[2]
# the command as `python -m w2vtool` runs it, and then the names of all that was imported
RUNNER = """
import atexit, json, os, sys
atexit.register(lambda: open(os.environ["MODULES"], "w").write(json.dumps(list(sys.modules))))
sys.argv[0] = "w2vtool"
from w2vtool.cli import main
main()
"""


class Done(NamedTuple):
    """How a command ended."""

    code: int
    out: str
    err: str
    modules: set[str]


Cli = Callable[..., Done]


@pytest.fixture
def cli(tmp_path: Path) -> Cli:
    """Run ``w2vtool`` with words, in ``tmp_path``; ``env`` is added to the environment."""

    def command(*words: str, env: dict[str, str] | None = None) -> Done:
        modules = tmp_path.parent / f"{tmp_path.name}-modules.json"
        path = os.pathsep.join(filter(None, [(env or {}).get("PYTHONPATH"), str(ROOT)]))
        drop = ("RANK", "WORLD_SIZE", "W2VTOOL_PLUGINS", "COLUMNS", "FORCE_COLOR")
        base = {key: value for key, value in os.environ.items() if key not in drop}
        done = subprocess.run(
            [sys.executable, "-c", RUNNER, *words],
            cwd=tmp_path,
            env={**base, **(env or {}), "PYTHONPATH": path, "MODULES": str(modules)},
            capture_output=True,
            text=True,
            timeout=120,
            stdin=subprocess.DEVNULL,
        )
        names = set(json.loads(modules.read_text())) if modules.exists() else set()
        return Done(done.returncode, done.stdout, done.stderr, names)

    return command
