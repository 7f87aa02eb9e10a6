"""The members of an uncompressed tar: where their bytes lie, and nothing that could do harm.

Goes in: a tar file from anywhere. Goes out: name, first byte and length of every regular file in
it, in order, or a ``DataError``. Nothing is ever extracted, so a name is never a path; names that
could become one outside of a folder are refused all the same, as are links and devices, because
whoever made them did not make a shard of audio.
"""

from __future__ import annotations

import re
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from w2vtool.errors import DataError

BLOCK = 512  # bytes; headers and contents begin at multiples of it
_CONTROL = re.compile("[\x00-\x1f\x7f\ud800-\udfff]")  # surrogates: a name that is not UTF-8
_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}


class Member(NamedTuple):
    """A regular file in a tar: its name, its first byte and how many there are."""

    name: str
    start: int
    length: int


def members(path: Path) -> Iterator[Member]:
    """Regular files of a tar, in order; folders are passed over.

    Raises DataError for what is no uncompressed tar, ends too early, or holds an unsafe name, a
    link, a device or a sparse file.
    """
    try:
        _check_kind(path)
        with tarfile.open(path, mode="r:") as tar:
            yield from _members(path, tar)
    except tarfile.TarError as error:
        raise DataError(f"not a sound tar file ({error})", where=str(path)) from error
    except OSError as error:
        raise DataError(f"cannot be read ({error.strerror or error})", where=str(path)) from error
    except (ValueError, EOFError, OverflowError, RecursionError, AttributeError) as error:
        # what the standard library's reader makes of headers that are made to confuse it
        raise DataError("not a sound tar file (a damaged header)", where=str(path)) from error


def _check_kind(path: Path) -> None:
    with path.open("rb") as file:
        head = file.read(8)
    for magic, name in _COMPRESSED.items():
        if head.startswith(magic):
            what = f"is compressed ({name}); members of a shard are read where they lie"
            raise DataError(what, where=str(path), hint="unpack it to a plain .tar")


def _members(path: Path, tar: tarfile.TarFile) -> Iterator[Member]:
    size, end = path.stat().st_size, 0
    while (info := tar.next()) is not None:
        tar.members = []  # type: ignore[attr-defined]  # it would keep all of them
        problem = unsafe(info.name) or _odd(info)
        if problem:
            raise DataError(f"member {info.name[:200]!r}: {problem}", where=str(path))
        if info.offset < end or info.size < 0 or info.offset_data + info.size > size:
            what = f"member {info.name[:200]!r} of {info.size:,} bytes is not within the file"
            raise DataError(what, where=str(path), hint="it was cut short; fetch it again")
        end = info.offset_data + -(-info.size // BLOCK) * BLOCK
        if info.isreg():
            yield Member(info.name, info.offset_data, info.size)
    with path.open("rb") as file:
        file.seek(end)
        if file.read(BLOCK) != bytes(BLOCK):  # where a header is damaged, tarfile just stops
            what = f"no end of archive at byte {end:,}, but a damaged header, or nothing"
            raise DataError(what, where=str(path), hint="it was cut short or damaged")


def _odd(info: tarfile.TarInfo) -> str:
    if info.issym() or info.islnk():
        return "a link"
    if info.issparse():
        return "a sparse file"
    return "" if info.isreg() or info.isdir() else "not a regular file"


def unsafe(name: str) -> str:
    """What is wrong with the name of a member, or nothing."""
    if not name or _CONTROL.search(name):
        return "a name that is empty, or with control characters or bytes that are not UTF-8"
    if name.startswith("/") or re.match(r"[A-Za-z]:|\\", name):
        return "an absolute name"
    if ".." in re.split(r"[/\\]", name):
        return "a name with '..'"
    return "a name with a backslash" if "\\" in name else ""
