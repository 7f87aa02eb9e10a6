"""What lies at a path, in words: for errors about what was given where a file is wanted.

Goes in: a path, or the mode of what is open. Goes out: what is wrong with it, or nothing.

Why before anything is opened: opening a pipe waits for who writes into it, maybe for ever, and what
was read from one is gone for the next process that wants it.
"""

from __future__ import annotations

import stat
from pathlib import Path

_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a character device"),
    (stat.S_ISBLK, "a block device"),
)


def kind(mode: int) -> str:
    """``a pipe``, ``a folder`` …; empty for a regular file."""
    return next((name for test, name in _KINDS if test(mode)), "")


def problem(path: Path, what: str) -> str:
    """Why a path is no file with something in it; empty if it is. ``what`` is to be there."""
    try:
        found = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return f"no such {what}"
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    if name := kind(found.st_mode):
        return f"is {name}, not a {what}"
    return "" if found.st_size else f"not a {what}: the file is empty"


def no_manifest(out: Path) -> str:
    """Why no manifest can be written under a name; empty if it may be."""
    if out.is_dir():
        return "is a folder, and a manifest is a file"
    return "" if out.suffix == ".jsonl" else "a manifest must be a .jsonl file"
