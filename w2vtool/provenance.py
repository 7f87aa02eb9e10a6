"""What ran, and where: facts that make a result traceable, for run.json."""

from __future__ import annotations

import os
import platform
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

from w2vtool import __version__


def facts() -> dict[str, Any]:
    """The command, the process, the machine, the versions and the commit."""
    return {
        "command": shlex.join(sys.argv),
        "directory": str(Path.cwd()),
        "pid": os.getpid(),
        "host": platform.node(),
        "system": platform.platform(),
        "versions": versions(),
        **commit(Path(__file__).parent.parent),
    }


def versions() -> dict[str, str]:
    """Versions of Python, w2vtool, and of what was imported of the libraries that move numbers."""
    found = {"python": platform.python_version(), "w2vtool": __version__}
    for name in ("torch", "torchaudio", "numpy"):
        version = getattr(sys.modules.get(name), "__version__", None)
        if version is not None:
            found[name] = str(version)
    return found


def commit(root: Path) -> dict[str, Any]:
    """The commit of a source tree and whether files differ from it; nothing where there is none."""
    if not (root / ".git").exists():
        return {}
    try:
        head, changes = (
            subprocess.run(
                ["git", "-C", str(root), *words],
                capture_output=True,
                text=True,
                timeout=10,
                check=True,
            ).stdout.strip()
            for words in (["rev-parse", "HEAD"], ["status", "--porcelain", "-uno"])
        )
    except (OSError, subprocess.SubprocessError):
        return {}
    return {"commit": head, "modified": bool(changes)}
