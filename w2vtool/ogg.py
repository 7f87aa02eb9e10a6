"""OGG: its pages must all be there, undamaged, and of one stream.

Goes in: a ``Source`` and its first bytes. Goes out: a ``Header``, or an ``AudioError``:
``truncated``, ``damaged``, ``chained``.

Why: libsndfile ends a stream wherever the file ends, skips damaged pages, and reads only the first
of several streams behind one another. Source: RFC 3533, sections 4 and 6.
"""

from __future__ import annotations

import zlib

from w2vtool.sources import AudioError, Header, Source

_PAGE_BYTES = 65_307  # the largest page
_PADDING = 512  # zeros that some writers leave behind the end
_BLOCK_BYTES = 1 << 20
_REVERSED_BITS = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


def read_ogg(source: Source, head: bytes) -> Header:
    """The last page must be whole, carry the end-of-stream flag, and belong to the first stream."""
    tail = source.tail(_PAGE_BYTES + _PADDING)
    page = tail.rfind(b"OggS")
    if page < 0 or _page_end(tail, page) > len(tail) or not tail[page + 5] & 4:
        what = "truncated: the OGG stream has no complete end-of-stream page"
        raise source.refusal("truncated", what, "fetch it again, or rewrite it if it was streamed")
    if tail[page + 14 : page + 18] != head[14:18]:
        raise _chained(source)
    return Header("OGG")


def _chained(source: Source) -> AudioError:
    what = "several OGG streams in one file; only the first would be read"
    return source.refusal("chained", what, "convert it to FLAC with a tool that reads them all")


def _page_end(data: bytes, page: int) -> int:
    if page + 27 > len(data):
        return len(data) + 1
    segments = data[page + 26]
    return page + 27 + segments + sum(data[page + 27 : page + 27 + segments])


def check_ogg(source: Source) -> None:
    """Every page must follow the one before, have the next number, and match its checksum.

    Why: libsndfile skips a damaged page and joins what is left and right of it.
    """
    position, number, ended = 0, 0, False
    while position < source.size:
        data = source.read_at(position, _BLOCK_BYTES)
        page, room = 0, len(data) - (_PAGE_BYTES if len(data) == _BLOCK_BYTES else 1)
        while page <= room:
            end = _page_end(data, page)
            sound = data[page : page + 4] == b"OggS" and end <= len(data)
            if not sound and ended:  # padding after the end of the stream
                return
            if not sound or _checksum(data[page:end]) != data[page + 22 : page + 26]:
                what = f"damaged OGG page at byte {position + page:,}"
                raise source.refusal("damaged", what, "fetch it again")
            if ended:
                raise _chained(source)
            found = int.from_bytes(data[page + 18 : page + 22], "little")
            if found != number and number:
                what = f"page {found:,} where page {number:,} should be: a part is missing"
                raise source.refusal("damaged", what, "fetch it again")
            number = found + 1
            ended = bool(data[page + 5] & 4)
            page = end
        position += page


def _checksum(page: bytes) -> bytes:
    """CRC-32 of OGG: polynomial 0x04C11DB7, not reflected, start 0, with its own field zeroed.

    zlib's is the reflected one with inverted ends: so reverse the bits going in and coming out.
    """
    cleared = page[:22] + bytes(4) + page[26:]
    crc = zlib.crc32(cleared.translate(_REVERSED_BITS), 0xFFFFFFFF) ^ 0xFFFFFFFF
    return crc.to_bytes(4, "big").translate(_REVERSED_BITS)  # reversed bits: ends up little-endian
