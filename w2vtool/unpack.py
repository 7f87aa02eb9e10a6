"""Unpack tar and zip archives that nobody vouches for.

Goes in: an archive, and a folder. Goes out: its files and folders below that folder; or a DataError
that names the member, with nothing changed there. Only plain files and folders are taken. Links,
devices, and names that are absolute, lead upwards, or could mean another path anywhere are
refused. Everything is unpacked beside its place first, and moved when the whole archive proved to
be good.

Why ``tarfile`` gets to see a guarded stream: it believes lengths (a header may ask for gigabytes, a
negative length makes old versions read for ever), and takes a damaged header for the end.
"""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
import re
import shutil
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, NamedTuple

from w2vtool.download import check_room
from w2vtool.errors import DataError, Stopped

SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".zip")
CHUNK = 1 << 20  # also the longest header that is read
BLOCK = 512  # of a tar
MOST_PADDING = 16 << 20  # bytes behind a tar's end
DEEPEST = 32
_OURS = re.compile(r"\.checksums|\.download\.lock|\..*\.unpack(ed|ing)")
_DRIVE = re.compile(r"[A-Za-z]:")
_DAMAGED = (
    tarfile.TarError,
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    EOFError,
    ValueError,
    NotImplementedError,
    RuntimeError,
    OverflowError,
    struct.error,
)
_KINDS = {
    tarfile.LNKTYPE: "a hard link",
    tarfile.SYMTYPE: "a symbolic link",
    tarfile.CHRTYPE: "a device",
    tarfile.BLKTYPE: "a device",
    tarfile.FIFOTYPE: "a pipe",
}


class Member(NamedTuple):
    """A file or folder of an archive. ``read(n)`` gives at most n of its next bytes."""

    name: str
    size: int
    is_folder: bool
    read: Callable[[int], bytes]


@dataclass
class Unpacked:
    """What came out: names at the top, and files that had another content where they should go."""

    files: int = 0
    bytes: int = 0
    top: list[str] = field(default_factory=list)
    aside: list[Path] = field(default_factory=list)


def is_archive(name: str) -> bool:
    """Whether a file of this name is one that ``unpack`` takes."""
    return name.lower().endswith(SUFFIXES)


def unpack(
    archive: Path,
    into: Path,
    *,
    nested: str = "",
    stopped: Callable[[], int | None] = lambda: None,
    on_progress: Callable[[int], None] = lambda done: None,
) -> Unpacked:
    """Unpack an archive, and archives in it that match the glob ``nested``, into a folder.

    A file that is there already, with other content, stays; the new one is put beside it. Raises
    DataError, Stopped; then nothing was changed but a hidden folder that the next call clears away.
    ``on_progress`` gets the bytes of the archive that are done.
    """
    stage = into / f".{archive.name}.unpacking"
    if stage.is_symlink() or stage.is_file():
        raise DataError("in the way of unpacking", where=str(stage), hint="move it")
    shutil.rmtree(stage, ignore_errors=True)
    found = Unpacked()
    work = _Work(stopped, on_progress, found)
    try:
        stage.mkdir(parents=True, mode=0o700)
        work.take(archive, stage)
        for inner in sorted(stage.glob(nested)) if nested else []:
            work.take(inner, inner.parent)
            inner.unlink()
        if not found.files:
            raise DataError("there are no files in it", where=str(archive))
        found.top = sorted(path.name for path in stage.iterdir())
        _merge(stage, into, archive.name, found)
    except OSError as error:
        where = str(error.filename or archive)
        raise DataError(f"cannot be unpacked ({error.strerror})", where=where) from error
    finally:
        shutil.rmtree(stage, ignore_errors=True)
    return found


@dataclass
class _Work:
    stopped: Callable[[], int | None]
    on_progress: Callable[[int], None]
    found: Unpacked

    def take(self, archive: Path, into: Path) -> None:
        """Write all members of one archive below a folder that nobody else writes to."""
        where = str(archive)
        try:
            with archive.open("rb") as raw:
                for member in _members(raw):
                    self._write(member, into, where)
                    self.on_progress(raw.tell())
        except FileExistsError as error:
            what = f"{Path(error.filename).relative_to(into)} is in the archive twice"
            raise DataError(what, where=where, hint="nothing was unpacked") from error
        except _Refused as error:
            raise DataError(str(error), where=where, hint="nothing was unpacked") from error
        except (*_DAMAGED, OSError) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise  # of the disk; those of decompressors have no number
            what = f"damaged or cut off ({error or type(error).__name__})"
            hint = "delete it and download it again"
            raise DataError(what, where=where, hint=hint) from error

    def _write(self, member: Member, into: Path, where: str) -> None:
        path = into.joinpath(*safe_parts(member.name))
        if path == into:
            return
        if member.is_folder:
            path.mkdir(parents=True, exist_ok=True)
            return
        check_room(into, member.size, where)
        path.parent.mkdir(parents=True, exist_ok=True)
        left = member.size
        with path.open("xb") as file:
            while left:
                chunk = member.read(min(left, CHUNK))
                if not chunk:
                    raise EOFError(f"{member.name} is cut off")
                file.write(chunk)
                left -= len(chunk)
                if (signal := self.stopped()) is not None:
                    raise Stopped(signal)
        self.found.files += 1
        self.found.bytes += member.size


class _Refused(Exception):
    """A member that is not wanted."""


def safe_parts(name: str) -> list[str]:
    """The parts of a member's path. Raises ``_Refused`` for one that might leave the folder."""
    shown = repr(name[:200])
    if not name or not name.isprintable():
        raise _Refused(f"{shown} has characters that no file name should have")
    if name.startswith("/") or "\\" in name or _DRIVE.match(name):
        raise _Refused(f"{shown} is an absolute path, or one of another system")
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if ".." in parts:
        raise _Refused(f"{shown} leads out of the folder")
    if parts and _OURS.fullmatch(parts[0]):
        raise _Refused(f"{shown} is a name of the downloader's own files")
    if len(parts) > DEEPEST or any(len(part.encode()) > 255 for part in parts):
        raise _Refused(f"{shown} is too long or too deep")
    return parts


def _members(raw: IO[bytes]) -> Iterator[Member]:
    start = raw.read(6)
    raw.seek(0)
    if start.startswith(b"PK"):
        return _of_zip(raw)
    stream: Any = raw
    if start.startswith(b"\x1f\x8b"):
        stream = gzip.GzipFile(fileobj=raw)
    elif start.startswith(b"BZh"):
        stream = bz2.BZ2File(raw)
    elif start.startswith(b"\xfd7zXZ"):
        stream = lzma.LZMAFile(raw)  # noqa: SIM115
    return _of_tar(_Guard(stream))


class _Guard:
    """A stream that is read forwards only, in portions that are not too large."""

    def __init__(self, stream: Any) -> None:
        self.stream, self.position, self.last = stream, 0, b""

    def read(self, size: int) -> bytes:
        if not 0 <= size <= CHUNK:
            raise tarfile.ReadError(f"a header of {size:,} bytes")
        parts, left = [], size
        while left and (part := self.stream.read(left)):
            parts.append(part)
            left -= len(part)
        self.last = b"".join(parts)
        self.position += len(self.last)
        return self.last

    def seek(self, position: int) -> None:
        if position < self.position:
            raise tarfile.ReadError("a header that leads backwards")
        while self.position < position and self.read(min(CHUNK, position - self.position)):
            pass

    def tell(self) -> int:
        return self.position


def _of_tar(guard: _Guard) -> Iterator[Member]:
    with tarfile.open(fileobj=guard, mode="r:", encoding="utf-8") as tar:  # type: ignore[call-overload]
        while (member := tar.next()) is not None:
            tar.members.clear()  # or all of ten million stay in memory
            if not (member.isreg() or member.isdir()) or member.sparse is not None:
                kind = _KINDS.get(member.type, "no plain file")
                raise _Refused(f"{member.name[:200]!r} is {kind}")
            if member.size < 0:
                raise tarfile.ReadError(f"a length of {member.size}")
            end = guard.position + member.size

            def read(size: int, end: int = end) -> bytes:
                return guard.read(min(size, end - guard.position))

            yield Member(member.name, 0 if member.isdir() else member.size, member.isdir(), read)
    if guard.last != bytes(BLOCK):
        raise EOFError("no end mark")
    end = guard.position
    while guard.read(CHUNK):  # to the end of the compressed stream, which has a checksum
        if guard.position - end > MOST_PADDING:
            raise tarfile.ReadError("data behind its end")


def _of_zip(raw: IO[bytes]) -> Iterator[Member]:
    with zipfile.ZipFile(raw) as packed:
        for info in packed.infolist():
            name, kind = info.orig_filename, stat.S_IFMT(info.external_attr >> 16)
            if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
                what = "a symbolic link" if kind == stat.S_IFLNK else "no plain file"
                raise _Refused(f"{name[:200]!r} is {what}")
            if info.is_dir():
                yield Member(name, 0, True, lambda size: b"")
                continue
            with packed.open(info) as file:
                yield Member(name, info.file_size, False, file.read)


def _merge(stage: Path, into: Path, archive: str, found: Unpacked) -> None:
    """Move what is in ``stage`` to its place; folders that are there already are filled up."""
    for new in sorted(stage.iterdir()):
        place = into / new.name
        if not place.exists() and not place.is_symlink():
            new.replace(place)
        elif new.is_dir() and place.is_dir():
            _merge(new, place, archive, found)
        elif not (new.is_file() and place.is_file() and _same(new, place)):
            place = _free(place, archive)
            new.replace(place)
            found.aside.append(place)


def _free(place: Path, archive: str) -> Path:
    name, number = f"{place.name}~{archive}", 1
    while place.with_name(name).exists():
        number += 1
        name = f"{place.name}~{archive}~{number}"
    return place.with_name(name)


def _same(one: Path, other: Path) -> bool:
    if one.stat().st_size != other.stat().st_size:
        return False
    with one.open("rb") as a, other.open("rb") as b:
        while chunk := a.read(CHUNK):
            if chunk != b.read(CHUNK):
                return False
    return True


def flush() -> None:
    """Have the system write what was unpacked, before the archive is deleted."""
    os.sync()
