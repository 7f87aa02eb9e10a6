"""Checkpoints of other toolkits are pickles: read them as plain data, running nothing.

Goes in: a ``.pt`` or ``.bin`` file, in torch's zip format or the one before torch 1.6. Goes out:
dicts, lists, values and tensors. The archive and every opcode, name, call and tensor of the pickle
are judged first (``archive``, ``opcodes``); all that a wav2vec 2.0 checkpoint has no need of is
refused before a tensor is built. What passes is read by torch's restricted un-pickler, with inert
stand-ins for the foreign classes.

Why torch still reads the file: two guards of different make must both be wrong before anything
happens. Tensors of a zip file are views of the file, so that gigabytes of optimizer state are not
read; clone what must outlive a change of the file.
"""

from __future__ import annotations

import contextlib
import mmap
import pickle
import re
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

import numpy as np
import torch
from torch import Tensor

from w2vtool.errors import CheckpointError
from w2vtool.interop import archive, opcodes
from w2vtool.interop.archive import Record
from w2vtool.interop.opcodes import BrokenPickleError, LongPickleError, Sketch

# How the older format starts: two numbers, pickled; then three more pickles, then the storages.
_OLD_MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
_OLD_VERSION = b"\x80\x02M\xe9\x03."
_ALIGNMENT = 16  # bytes; torch aligns to 64, an archive that was packed anew has none
_MAX_DEPTH = 64  # a nested OmegaConf takes four per level, four levels are usual
_MAX_NODES = 1_000_000  # 64 characters of text count as one more
_SCALAR = re.compile(r"[fiub][1248]")
_AGAIN = "copy or download the file again"
# What people have in place of a checkpoint: how it starts, what it is, what to do.
_STRANGERS = (
    (rb"version https://git-lfs", "a Git LFS pointer, not the file itself", "run: git lfs pull"),
    (rb"\s*<", "a web page or XML, not a checkpoint", "download it again, perhaps after a log-in"),
    (rb".{8}\s*\{\"", "a safetensors file, not a pickle", "name it model.safetensors"),
    (rb"\s*[\[{]", "JSON text, not a checkpoint", "give the file with the weights"),
    (rb"\x1f\x8b|BZh|\xfd7zXZ|7z\xbc\xaf|Rar!|\x28\xb5\x2f\xfd", "compressed", "unpack it first"),
    (rb".{257}ustar", "a tar archive, or torch's format of before 2018", "unpack it first"),
    (rb"\x80[\x00-\x05]", "a bare pickle, not a file that torch.save wrote", "do not load it"),
)
_FAILURES = (  # what torch raises on damaged files
    pickle.UnpicklingError,
    RuntimeError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    AssertionError,
    ArithmeticError,
    EOFError,
    MemoryError,
)


def load(path: Path) -> dict[str, Any]:
    """The content of a checkpoint: dict, list, str, numbers, None and Tensor, and nothing else.

    Tensors are on the CPU, without gradient. Objects of foreign classes become what they hold.
    Raises CheckpointError for a file that cannot be read, is no checkpoint, or asks for anything
    that a wav2vec 2.0 checkpoint has no need of; all of that is named, and nothing is run.
    """
    where = str(path)
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise CheckpointError(
                f"{'a folder' if path.is_dir() else 'a device or pipe'}, not a file", where=where
            )
        with path.open("rb") as file:
            start = file.read(512)
            if not start.startswith((archive.MAGIC, _OLD_MAGIC)):
                _name_stranger(start, where)
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                if start.startswith(archive.MAGIC):
                    loaded = _load_zip(path, data, file)
                else:
                    loaded = _load_old(data, where)
    except OSError as exc:
        raise CheckpointError(f"cannot be read ({exc.strerror or exc})", where=where) from exc
    return {str(key): value for key, value in _Plain(where)(loaded).items()}


def _name_stranger(start: bytes, where: str) -> NoReturn:
    what, hint = "not a checkpoint: neither torch's zip format nor its older one", _AGAIN
    if not start:
        what = "an empty file"
    for pattern, name, advice in _STRANGERS:
        if re.match(pattern, start, re.DOTALL):
            what, hint = name, advice
            break
    raise CheckpointError(what, where=where, hint=hint)


# -- judging ---------------------------------------------------------------------------------------


def _load_zip(path: Path, data: mmap.mmap, file: BinaryIO) -> Any:
    where = str(path)
    if path.suffix == ".safetensors":
        raise CheckpointError("a pickle under the name of safetensors", where=where)
    records = archive.records(data, file, where)
    _same_for_torch(path, data, records)
    start, size = records["data.pkl"]
    judged, names = _judge([data[start : start + min(size, opcodes.MAX_BYTES + 1)]], [5], where)
    _need_dict(judged[0], where)
    problems = [
        f"storage {opcodes.shown(key)} of {storage.nbytes} bytes is not in the file"
        for key, storage in judged[0].storages.items()
        if records.get(f"data/{key}", Record(0, -1)).size != storage.nbytes
    ]
    if problems:
        raise CheckpointError(f"damaged: {opcodes.listed(problems)}", where=where, hint=_AGAIN)
    aligned = all(
        record.start % _ALIGNMENT == 0
        for name, record in records.items()
        if name.startswith("data/")
    )
    return _read(path, names, where, in_place=aligned)


def _same_for_torch(path: Path, data: mmap.mmap, records: dict[str, Record]) -> None:
    """Refuse an archive that torch's own reader sees otherwise than Python's."""
    try:
        reader: Any = torch._C.PyTorchFileReader(str(path))
        names = reader.get_all_records()
        seen = {n: (reader.get_record_offset(n), reader.get_record_size(n)) for n in names}
        same = seen == records and all(
            reader.get_record(name) == data[start : start + size]
            for name, (start, size) in records.items()
            if not name.startswith("data/") and size <= opcodes.MAX_BYTES
        )
    except _FAILURES as exc:
        raise CheckpointError(
            "damaged: torch cannot open its zip archive", where=str(path), hint=_AGAIN
        ) from exc
    if not same or len(names) != len(seen):
        raise CheckpointError(
            "refused to load: two readers of zip archives see different content",
            where=str(path),
            hint=_AGAIN,
        )


def _load_old(data: mmap.mmap, where: str) -> Any:
    """Five pickles in a row: two constants, the machine, the content, the names of storages."""
    parts, place = [], 0
    for _ in range(5):
        part = data[place : place + opcodes.MAX_BYTES]
        part = part[: _survey(part, where).end]
        parts.append(part)
        place += len(part)
    if parts[:2] != [_OLD_MAGIC, _OLD_VERSION]:
        problems = [what for part in parts[1:] for what in opcodes.survey(part).problems]
        _refuse([*problems, "does not start as torch's older format does"], where)
    judged, names = _judge(parts[2:], [0, 6, 0], where)
    _need_dict(judged[1], where)
    storages, order = judged[1].storages, judged[2].value
    texts = type(order) is list and all(type(key) is str for key in order)
    if not texts or sorted(order) != sorted(storages):
        _refuse(["lists other storages than it uses"], where)
    for key in order:
        nbytes = storages[key].nbytes
        count = int.from_bytes(data[place : place + 8], "little")
        if len(data) >= place + 8 and count != storages[key].numel:
            _refuse([f"holds storage {opcodes.shown(key)} with another size than it says"], where)
        place += 8 + nbytes
    if place > len(data):
        raise CheckpointError(
            f"cut off: {len(data)} of {place} bytes are there", where=where, hint=_AGAIN
        )
    if place < len(data):
        _refuse([f"goes on for {len(data) - place} bytes after its end"], where)
    # not as a file: for files torch tries a format of before 2018 first, which unpacks to disk
    data.seek(0)
    return _read(data, names, where)


def _survey(part: bytes, where: str) -> opcodes.Survey:
    try:
        return opcodes.survey(part)
    except LongPickleError as exc:
        raise CheckpointError(f"refused to load: the pickle in it has {exc}", where=where) from exc
    except BrokenPickleError as exc:
        raise _broken(exc, where) from exc


def _broken(exc: BrokenPickleError, where: str) -> CheckpointError:
    return CheckpointError(
        f"damaged: the pickle in it cannot be read, {exc}", where=where, hint=_AGAIN
    )


def _judge(
    parts: Sequence[bytes], pid_fields: Sequence[int], where: str
) -> tuple[list[Sketch], frozenset[str]]:
    """Sketches and foreign names of pickles. Raises CheckpointError that names all problems."""
    surveys = [_survey(part, where) for part in parts]
    problems = [what for found in surveys for what in found.problems]
    if any(found.end < len(part) for found, part in zip(surveys, parts, strict=True)):
        problems.append("goes on after the end of its pickle")
    if problems:
        _refuse(problems, where)
    try:
        sketches = [opcodes.sketch(*each) for each in zip(parts, pid_fields, strict=True)]
    except BrokenPickleError as exc:
        raise _broken(exc, where) from exc
    problems = [what for found in sketches for what in found.problems]
    if problems:
        _refuse(problems, where)
    return sketches, frozenset().union(*(found.foreign for found in surveys))


def _need_dict(found: Sketch, where: str) -> None:
    if not isinstance(found.value, dict):
        raise CheckpointError(
            "no checkpoint in this file: its content is no dict",
            where=where,
            hint="give a file with a state dict, or with one under model",
        )


def _refuse(problems: Sequence[str], where: str) -> NoReturn:
    unique = list(dict.fromkeys(problems))
    raise CheckpointError(
        f"refused to load: the file {'; it '.join(unique)}",
        where=where,
        hint="a wav2vec 2.0 checkpoint needs none of this; do not load the file elsewhere",
    )


# -- reading ---------------------------------------------------------------------------------------


class _Foreign:
    """Stands for an object of a foreign class: keeps arguments and state, has no behaviour."""

    def __new__(cls, *args: object) -> _Foreign:
        self = object.__new__(cls)
        self.__dict__["arguments"] = args
        return self

    def __setstate__(self, state: object) -> None:
        self.__dict__["state"] = state


def _empty_dict(*_: object) -> dict[object, object]:
    """Stands for ``defaultdict``, whose items the un-pickler then fills in."""
    return {}


@contextlib.contextmanager
def _stand_ins(names: frozenset[str]) -> Iterator[None]:
    """Only these names are known beyond torch's own, and none of them is the real class.

    A program around this one may have registered real classes with torch; they are set aside.
    """
    stubs: list[Any] = [
        (_empty_dict if name == "collections.defaultdict" else type(name, (_Foreign,), {}), name)
        for name in sorted(names)
    ]
    registered = torch.serialization.get_safe_globals()
    torch.serialization.clear_safe_globals()
    try:
        with torch.serialization.safe_globals(stubs):
            yield
    finally:
        torch.serialization.add_safe_globals(registered)


def _read(source: Any, names: frozenset[str], where: str, *, in_place: bool = False) -> Any:
    """Let torch read what was judged. Its own advice on errors is never passed on."""
    try:
        with _stand_ins(names):
            return torch.load(source, map_location="cpu", weights_only=True, mmap=in_place)
    except _FAILURES as exc:
        # torch's text tells people to switch the protection off
        raise CheckpointError(
            f"damaged: torch cannot read it ({type(exc).__name__})", where=where, hint=_AGAIN
        ) from exc


class _Plain:
    """Stand-ins become dicts, lists and values; OmegaConf's content without its bookkeeping.

    Values may be shared and even hold themselves, so that a few lines would become a tree without
    end: depth and size are limited.
    """

    def __init__(self, where: str) -> None:
        self.where, self.nodes = where, 0

    def __call__(self, value: Any, depth: int = 0) -> Any:
        self.nodes += 1 + (len(value) // 64 if isinstance(value, str | bytes) else 0)
        if depth > _MAX_DEPTH or self.nodes > _MAX_NODES:
            self._refuse("values that are nested without end")
        if value is None or isinstance(value, bool | int | float | str):
            return value
        if isinstance(value, Tensor):
            return self._tensor(value)
        if isinstance(value, dict):
            plain = {str(k): self(v, depth + 1) for k, v in dict.items(value)}
            if len(plain) < len(value):
                self._refuse("two keys that are written alike")
            return plain
        if isinstance(value, list | tuple):
            return [self(item, depth + 1) for item in value]
        if isinstance(value, bytes):
            return value.decode("latin-1")
        if isinstance(value, _Foreign):
            return self(self._content(value), depth + 1)
        if isinstance(value, type) and issubclass(value, _Foreign):
            return value.__name__
        if isinstance(value, torch.dtype):
            return str(value)
        return self._refuse(f"a {type(value).__name__} as a value")

    def _refuse(self, what: str) -> NoReturn:
        _refuse([f"holds {what}"], self.where)

    def _tensor(self, value: Tensor) -> Tensor:
        """The tensor alone, without hooks and gradient, if it is a plain block of memory."""
        if value.layout != torch.strided or value.device.type != "cpu" or value.is_quantized:
            self._refuse(f"a tensor of {value.layout} on {value.device}")
        if value.numel() * value.element_size() > value.untyped_storage().nbytes():
            self._refuse(f"a tensor of {tuple(value.shape)} in a smaller storage")
        return value.detach()

    def _content(self, value: _Foreign) -> Any:
        """What an object holds: the value of an Enum or a numpy number, or its attributes."""
        arguments, state = value.__dict__["arguments"], value.__dict__.get("state")
        if type(value).__name__.endswith("multiarray.scalar"):
            return _number(*arguments)
        if state is None and len(arguments) == 1:  # a member of an Enum
            return arguments[0]
        if isinstance(state, tuple):
            state = state[-1] if state else None
        for key in ("_content", "_val"):
            if isinstance(state, dict) and key in state:
                return state[key]
        return {} if state is None else state


def _number(kind: Any = None, content: Any = None, *_: Any) -> float | int | bool | None:
    """A numpy number from its type, such as "f8", and its bytes; None if it is neither."""
    if not isinstance(kind, _Foreign):
        return None
    code, state = kind.__dict__["arguments"][:1], kind.__dict__.get("state")
    if code and isinstance(code[0], str) and _SCALAR.fullmatch(code[0]):
        big = isinstance(state, tuple) and state[1:2] == (">",)
        dtype = np.dtype(code[0]).newbyteorder(">" if big else "<")
        if isinstance(content, bytes) and len(content) == dtype.itemsize:
            return np.frombuffer(content, dtype)[0].item()
    return None
