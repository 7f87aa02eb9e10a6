"""Folders of files that are complete or absent, and know when they are damaged.

Goes in: names and bytes. Goes out: a directory with these files and ``MANIFEST.json``, which holds
size and SHA-256 of each. It is written last, into a directory with a temporary name, which is then
renamed; all is forced to the disk on the way. Nothing is read that is not as it was written.

Why a folder that replaces another is first called ``….new``: a name cannot be taken from one and
given to the other at once, and a crash between the two must not cost both.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from w2vtool.errors import CheckpointError

FORMAT = 1
MANIFEST = "MANIFEST.json"
NEW = ".new"
Listed = dict[str, dict[str, Any]]  # of each file, "bytes" and "sha256"


def write(path: Path, contents: Mapping[str, Callable[[], bytes]]) -> None:
    """Make the directory ``path``, complete or not at all; its parent must exist.

    Each file is made when it is its turn: all of them at once may be more than the memory holds.
    What was at ``path`` before is readable until the new one is. Raises OSError.
    """
    part = _hidden(path)
    part.mkdir()
    try:
        listed = {name: _store(part / name, make()) for name, make in contents.items()}
        _store(part / MANIFEST, as_json({"format": FORMAT, "files": listed}))
        sync(part)
        settle(path)
        if path.exists():
            part.rename(_successor(path))
            sync(path.parent)
            settle(path)
        else:
            part.rename(path)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
    sync(path.parent)


def settle(path: Path) -> None:
    """Let the complete successor of ``path`` take its place, if there is one."""
    if (new := _successor(path)).exists():
        discard(path)
        new.rename(path)


def discard(path: Path) -> None:
    """Delete a directory, if it is there, without ever leaving a part of it under its name."""
    trash = _hidden(path)
    with contextlib.suppress(FileNotFoundError):
        path.rename(trash)
        shutil.rmtree(trash, ignore_errors=True)


def sync(folder: Path) -> None:
    """Force the names in a folder to the disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def manifest(path: Path) -> Listed:
    """Size and hash of each file of a directory. Raises CheckpointError.

    It must be written as ``write`` writes it, byte by byte: nothing vouches for it but its form.
    """
    try:
        data = (path / MANIFEST).read_bytes()
        content = json.loads(data)
        listed = {
            str(name): {"bytes": int(entry["bytes"]), "sha256": str(entry["sha256"])}
            for name, entry in content["files"].items()
        }
        version = content["format"]
    except OSError as exc:
        raise damaged(path, f"{MANIFEST}: {exc.strerror}") from exc
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as exc:
        raise damaged(path, f"{MANIFEST} is not as it was written") from exc
    if version != FORMAT:
        raise CheckpointError(
            f"checkpoint format {version!r}; this w2vtool reads {FORMAT}", where=str(path)
        )
    if data != as_json({"format": FORMAT, "files": listed}):
        raise damaged(path, f"{MANIFEST} is not as it was written")
    return listed


def read(path: Path, name: str, listed: Listed) -> bytes:
    """A file of a directory, if it is as its manifest says. Raises CheckpointError."""
    try:
        data = (path / name).read_bytes()
    except OSError as exc:
        raise damaged(path, f"{name}: {exc.strerror}") from exc
    _compare(path, name, listed, len(data), hashlib.sha256(data).hexdigest())
    return data


def verify(path: Path, name: str, listed: Listed) -> None:
    """``read`` for a file of any size: it need not fit into memory."""
    try:
        with (path / name).open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            size = file.tell()
    except OSError as exc:
        raise damaged(path, f"{name}: {exc.strerror}") from exc
    _compare(path, name, listed, size, digest)


def as_json(value: Any) -> bytes:
    """The one way in which JSON is written here. Raises ValueError for NaN and infinity."""
    return (json.dumps(value, indent=1, sort_keys=True, allow_nan=False) + "\n").encode()


def damaged(path: Path, what: str) -> CheckpointError:
    """The error for a directory that is not as it was written."""
    return CheckpointError(
        f"damaged checkpoint: {what}",
        where=str(path),
        hint="use an older checkpoint of the run, or restore this one from a copy",
    )


def _compare(path: Path, name: str, listed: Listed, size: int, digest: str) -> None:
    wanted = listed[name]
    if size != wanted["bytes"]:
        raise damaged(path, f"{name} has {size} bytes, {wanted['bytes']} were written")
    if digest != wanted["sha256"]:
        raise damaged(path, f"{name} has another SHA-256 than when it was written")


def _store(path: Path, data: bytes) -> dict[str, Any]:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    return {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def _successor(path: Path) -> Path:
    return path.with_name(path.name + NEW)


def _hidden(path: Path) -> Path:
    return path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
