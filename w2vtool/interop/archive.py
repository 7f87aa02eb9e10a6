"""The zip archive around a checkpoint: exactly as torch writes it, or refused.

Goes in: the file's bytes. Goes out: the records in it and where their content lies. Nothing is
unpacked. Python's ``zipfile`` and torch's own reader must see the same archive, or the pickle that
is judged were not the one that is read: so no entry twice, no bytes before or after, headers that
agree with the directory, and no names that torch does not write. Nothing is compressed in torch's
files, so a small file cannot become a large one.

Source: the records that ``torch.save`` of torch 1.6 to 2.14 writes.
"""

from __future__ import annotations

import stat
import struct
import zipfile
from collections import Counter
from mmap import mmap
from typing import BinaryIO, NamedTuple

from w2vtool.errors import CheckpointError
from w2vtool.interop.opcodes import listed, shown

MAGIC = b"PK\3\4"
_MAX_DIRECTORY = 16 * 2**20  # bytes: 100 000 storages, some ten times the largest public checkpoint
_MAX_COMMENT = 0xFFFF
_END = struct.Struct("<4s4H2IH")
_END64 = struct.Struct("<4sQ2H2I4Q")
_LOCATOR = struct.Struct("<4sIQI")
_HEADER = struct.Struct("<4s5H3I2H")
_UTF8 = 0x800
_FLAGS = _UTF8 | 0x8  # 8: sizes are also after the content
_FOLDER = 0x10  # in the attributes of MS-DOS
_PLAIN_FILE = (0, stat.S_IFREG)
_RECORDS = {
    "data.pkl",
    "version",
    "byteorder",
    ".format_version",
    ".storage_alignment",
    ".data/version",
    ".data/serialization_id",
}
_BYTE_ORDERS = (b"little", b"big")


class Record(NamedTuple):
    """Where the content of one entry lies in the file."""

    start: int
    size: int


def records(data: mmap, file: BinaryIO, where: str) -> dict[str, Record]:
    """The records by their names within the archive, ``data.pkl`` among them.

    Raises CheckpointError that names all that makes it another archive than torch writes.
    """
    directory = _directory(data, where)
    try:
        with zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, NotImplementedError, ValueError, struct.error) as exc:
        raise CheckpointError(
            "damaged: the directory of the zip archive cannot be read",
            where=where,
            hint="copy or download the file again",
        ) from exc
    names = [info.orig_filename.partition("/")[2] for info in entries]
    if any(name.startswith(("code/", "constants")) for name in names):
        raise CheckpointError(
            "refused to load: a TorchScript program, not a checkpoint",
            where=where,
            hint="ask for the weights alone, saved as a state dict",
        )
    problems = [problem for info in entries for problem in _of_entry(info)]
    problems += [f"{shown(name)} {n} times" for name, n in Counter(names).items() if n > 1]
    if "data.pkl" not in names:
        problems.append("no data.pkl")
    if len({info.orig_filename.partition("/")[0] for info in entries}) > 1:
        problems.append("more than one top folder")
    if not problems:  # only then the entries can be trusted as far as to look at their places
        found, problems = _places(data, directory, dict(zip(names, entries, strict=True)))
    if problems:
        raise CheckpointError(
            f"refused to load: not a zip archive as torch writes it: {listed(problems)}",
            where=where,
            hint="if somebody packed it anew, ask for the original; else do not load it elsewhere",
        )
    return found


def _directory(data: mmap, where: str) -> int:
    """Where the directory starts, which must end with the file. Raises CheckpointError."""
    at = len(data) - _END.size
    magic, *_, size, start, comment = _END.unpack(data[max(at, 0) :].ljust(_END.size, b"\0"))
    if magic != b"PK\5\6" or comment:
        end = data.rfind(b"PK\5\6", max(0, at - _MAX_COMMENT))
        if end < 0 or end > at:
            raise CheckpointError(
                f"cut off: {len(data)} bytes, without the directory that ends a zip archive",
                where=where,
                hint="copy or download the file again",
            )
        raise CheckpointError(
            f"refused to load: {len(data) - end - _END.size} bytes follow its zip archive",
            where=where,
            hint="copy or download the file again",
        )
    locator = data[max(at - _LOCATOR.size, 0) : at]
    if locator[:4] == b"PK\6\7":  # torch always writes this longer form too
        place = _LOCATOR.unpack(locator)[2]
        at -= _LOCATOR.size + _END64.size
        magic, *_, size, start = _END64.unpack(data[max(at, 0) :][: _END64.size])
        if magic != b"PK\6\6" or place != at:
            start = -1
    if start + size != at or size > _MAX_DIRECTORY:
        raise CheckpointError(
            "refused to load: the directory of its zip archive is not where its end says",
            where=where,
            hint="copy or download the file again",
        )
    return int(start)


def _of_entry(info: zipfile.ZipInfo) -> list[str]:
    """What is wrong with one entry of the directory."""
    root, _, name = info.orig_filename.partition("/")
    shown_name = shown(info.orig_filename)
    problems = []
    number = name.removeprefix("data/")
    storage = name.startswith("data/") and number.isascii() and number.isdecimal()
    if root in ("", ".", "..") or "\\" in root or not (name in _RECORDS or storage):
        problems.append(f"an entry {shown_name}")
    if info.orig_filename != info.filename:
        problems.append(f"a null byte in the name {shown_name}")
    if info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size:
        problems.append(f"{shown_name} is compressed")
    if info.flag_bits & ~_FLAGS:
        problems.append(f"{shown_name} is encrypted or patched")
    # for a folder torch's reader gives memory that nothing was written to
    if info.external_attr & _FOLDER or stat.S_IFMT(info.external_attr >> 16) not in _PLAIN_FILE:
        problems.append(f"{shown_name} is a link or folder")
    return problems


def _places(
    data: mmap, directory: int, entries: dict[str, zipfile.ZipInfo]
) -> tuple[dict[str, Record], list[str]]:
    """Where each content lies; headers must agree with the directory, and nothing may overlap."""
    found: dict[str, Record] = {}
    problems, end = [], 0
    for name, info in sorted(entries.items(), key=lambda item: item[1].header_offset):
        header = data[info.header_offset : info.header_offset + _HEADER.size]
        magic, _, flags, method, *_, in_name, in_extra = _HEADER.unpack(header.ljust(30, b"\0"))
        start = info.header_offset + _HEADER.size
        own = data[start : start + in_name].decode("utf-8" if flags & _UTF8 else "cp437", "replace")
        if (magic, method, own) != (MAGIC, zipfile.ZIP_STORED, info.orig_filename):
            problems.append(f"{shown(name)} has another header than its directory says")
        if info.header_offset < end or (not found and info.header_offset):
            problems.append(f"{shown(name)} overlaps with what is before it")
        start += in_name + in_extra
        end = start + info.file_size
        found[name] = Record(start, info.file_size)
    if end > directory:
        problems.append("entries that are larger than the file")
    order = found.get("byteorder", Record(0, 0))
    if order.size and data[order.start : order.start + order.size] not in _BYTE_ORDERS:
        problems.append("a byteorder that is neither little nor big")
    return found, problems
