"""The bytes of one audio file, or of a member of a shard, and the words for what is said of them.

Goes in: a path, and for a member the range of its bytes. Goes out: a ``Source`` that reads at any
position and never past its end, and ``AudioError``s for whatever is no readable regular file;
``Info`` and ``Header`` are what ``containers`` and ``streams`` find in it.

Why a descriptor of our own: the kind, the size and the bytes that are checked are those of the file
that is decoded, whatever happens to the name meanwhile; a pipe or a socket is not waited for. Why
not mmap: a file that shrinks while it is mapped kills the process.
"""

from __future__ import annotations

import errno
import io
import os
import stat
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

from w2vtool.errors import DataError
from w2vtool.kinds import kind

SAMPLE_RATE = 16_000  # what reading gives and the network takes
HEAD_BYTES = 4_096  # one read, which mostly holds all that comes before the audio
Span = tuple[int, int]  # first byte and length of a member of a shard

_FLAGS = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY  # opening a pipe would wait
_NO_FILE = {errno.ENOENT, errno.ENOTDIR}
_NOT_REGULAR = {errno.ENXIO, errno.ENODEV, errno.EOPNOTSUPP}  # a socket; a device nobody drives


class AudioError(DataError):
    """One audio file cannot be used. ``reason`` is a short stable code, such as ``truncated``."""

    def __init__(self, what: str, *, where: str = "", hint: str = "", reason: str = "") -> None:
        super().__init__(what, where=where, hint=hint)
        self.reason = reason

    def __reduce__(self) -> tuple[object, ...]:
        return (_rebuild, (self.what, self.where, self.hint, self.reason))


def _rebuild(what: str, where: str, hint: str, reason: str) -> AudioError:
    return AudioError(what, where=where, hint=hint, reason=reason)


class Info(NamedTuple):
    """What a file is, before resampling and mixing down."""

    sample_rate: int
    channels: int
    frames: int  # samples per channel at the file's own rate

    @property
    def seconds(self) -> float:
        """Length of the file."""
        return self.frames / self.sample_rate

    @property
    def samples(self) -> int:
        """How many samples ``audio.read`` gives for the whole file, at 16 kHz."""
        return -(-self.frames * SAMPLE_RATE // self.sample_rate)


class Header(NamedTuple):
    """What the first bytes of a file say."""

    kind: str  # as libsndfile calls it
    info: Info | None = None  # None: only a decoder can tell
    about: int = 0  # frames, not to the last one, of an MP3
    patch: tuple[int, bytes] | None = None  # what the decoder must see instead, and where


class Source:
    """A regular file, or a span of one, to be used in ``with``.

    Leaving it closes the file, and raises ``changed`` if it is not what it was.

    Raises AudioError: ``missing``, ``not-a-file``, ``unreadable``, ``empty``, ``range`` (a span
    that no file could hold, or that begins behind its end), ``truncated`` (that ends behind it).
    """

    __slots__ = ("_seen", "fd", "name", "size", "spanned", "start")

    def __init__(self, path: str | Path, span: Span | None = None) -> None:
        self.name = os.fspath(path)
        self.spanned = span is not None
        try:
            self.fd = os.open(self.name, _FLAGS)
        except (OSError, ValueError) as error:  # ValueError: a NUL in the name
            raise self._unopened(error) from error
        try:
            status = os.fstat(self.fd)
            if not stat.S_ISREG(status.st_mode):
                raise self.refusal("not-a-file", f"is {kind(status.st_mode)}, not an audio file")
            self._seen = (status.st_size, status.st_mtime_ns)
            self.start, self.size = self._bounds(span, status.st_size)
        except BaseException:
            os.close(self.fd)
            raise

    def _unopened(self, error: OSError | ValueError) -> AudioError:
        code = error.errno if isinstance(error, OSError) else None
        if code in _NO_FILE:
            return self.refusal("missing", "no such file")
        if code in _NOT_REGULAR:
            return self.refusal("not-a-file", "is a socket or a device, not an audio file")
        what = f"cannot be read ({getattr(error, 'strerror', None) or error})"
        return self.refusal("unreadable", what)

    def _bounds(self, span: Span | None, size: int) -> Span:
        if span is None:
            if size == 0:
                hint = "fetch or copy the file again"
                raise self.refusal("empty", "is empty (0 bytes)", hint)
            return 0, size
        start, length = span
        shown = f"{length:,} bytes from byte {start:,} on"
        if start < 0 or length <= 0 or start >= size:
            what = f"{shown} are not within its {size:,} bytes"
            raise self.refusal("range", what, "build the manifest of the shards again")
        self.name = f"{self.name} (bytes {start}+{length})"
        if start + length > size:
            what = f"truncated: {shown} end behind the {size:,} bytes of the shard"
            raise self.refusal("truncated", what, "fetch the shard again")
        return start, length

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if kind is not None and not issubclass(kind, AudioError):
                return
            status = os.fstat(self.fd)
            if (status.st_size, status.st_mtime_ns) != self._seen:
                what = "was changed while it was read"
                raise self.refusal("changed", what, "wait until it is written") from error
        finally:
            os.close(self.fd)

    @property
    def suffix(self) -> str:
        """Ending of the file's name in lower case; a member of a shard has none."""
        name = "" if self.spanned else self.name.rpartition("/")[2]
        return name[name.rindex(".") :].lower() if "." in name[1:] else ""

    def refusal(self, reason: str, what: str, hint: str = "") -> AudioError:
        """An error about this file, to raise."""
        return AudioError(what, where=self.name, hint=hint, reason=reason)

    def read_at(self, position: int, count: int) -> bytes:
        """Bytes from a position on; fewer at the end."""
        count = min(count, self.size - position)
        if count <= 0:
            return b""
        try:
            return os.pread(self.fd, count, self.start + position)
        except OSError as error:
            raise self.refusal("unreadable", f"cannot be read ({error.strerror})") from error

    def tail(self, count: int) -> bytes:
        """The last bytes."""
        return self.read_at(max(0, self.size - count), count)

    def for_decoder(self, patch: tuple[int, bytes] | None = None) -> Any:
        """What libsndfile can read: the descriptor where it is the whole file, else a window.

        ``patch``: bytes that it shall see from a position on in place of those of the file.
        """
        if patch is None and not self.spanned:
            return self.fd  # still at its start: nothing here moves it
        return _Window(self, patch or (0, b""))


class _Window(io.RawIOBase):
    """A source as a file object, with a few bytes of it replaced."""

    def __init__(self, source: Source, patch: tuple[int, bytes]) -> None:
        self.source, self.patch, self.position = source, patch, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self.position, io.SEEK_END: self.source.size}[whence]
        self.position = max(0, base + offset)
        return self.position

    def readinto(self, buffer: Any) -> int:
        """Bytes read; 0 at the end, and where the disk fails: the decoder tells what is missing."""
        source, (at, patch) = self.source, self.patch
        room = memoryview(buffer)[: max(0, source.size - self.position)]
        try:
            count = os.preadv(source.fd, [room], source.start + self.position) if room else 0
        except OSError:
            return 0
        first, last = max(at, self.position), min(at + len(patch), self.position + count)
        if first < last:
            room[first - self.position : last - self.position] = patch[first - at : last - at]
        self.position += count
        return count
