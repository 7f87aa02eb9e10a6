"""FLAC: the header's length, held against the last frame of the stream.

Goes in: a ``Source`` and its first bytes. Goes out: a ``Header``, or an ``AudioError``:
``truncated``, ``damaged``, ``lying-header``, ``no-samples``.

Why: libsndfile believes any length that a header claims, and refuses a header without one, which
the format allows. Source: RFC 9639, sections 8.2 (STREAMINFO), 9.1 (frame headers) and 9.3 (CRC).
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from typing import NamedTuple, NoReturn

from w2vtool.sources import Header, Info, Source

_FETCH = "fetch it again"

# A frame spends at least 10 bytes on at most 65,535 samples; no format here packs tighter.
MAX_FRAMES_PER_BYTE = 65_535 / 10
_SYNC = re.compile(rb"\xff[\xf8\xf9]")
_SIZES = (0, 192, 576, 1152, 2304, 4608, 0, 0, *(256 << n for n in range(8)))  # samples
_ANY_FRAME_BYTES = 1 << 16  # what a frame takes when the header does not say
_MOST_FRAME_BYTES = 1 << 21  # 65,535 samples of 32 bits in 8 channels
_TAG_BYTES, _BIG_TAG_BYTES = 1 << 10, 1 << 20  # behind the audio


def _crc_table(polynomial: int, bits: int) -> list[int]:
    """Remainders of all bytes, most significant bit first."""
    table = []
    for byte in range(256):
        value = byte << (bits - 8)
        for _ in range(8):
            value = value << 1 ^ (polynomial if value >> (bits - 1) else 0)
            value &= (1 << bits) - 1
        table.append(value)
    return table


_CRC8, _CRC16 = _crc_table(0x07, 8), _crc_table(0x8005, 16)


class _Blocks(NamedTuple):
    """What of STREAMINFO the frames have to be read with."""

    largest: int  # samples per block
    fixed: bool  # frames count blocks, not samples


def read_flac(source: Source, head: bytes, start: int = 0) -> Header:
    """STREAMINFO, and the last frame: it must end at the sample that STREAMINFO names.

    A length of zero means not known, which is legal: the last frame tells it then.
    """
    if len(head) < 42 or head[4] & 0x7F or head[5:8] != b"\0\0\x22":
        reason = "truncated" if len(head) < 42 else "damaged"
        raise source.refusal(reason, f"{reason}: FLAC without STREAMINFO", _FETCH)
    smallest, largest = int.from_bytes(head[8:10], "big"), int.from_bytes(head[10:12], "big")
    packed = int.from_bytes(head[18:26], "big")  # 20 bits rate, 3 channels, 5 width, 36 samples
    frames = packed & (1 << 36) - 1
    info = Info(packed >> 44, (packed >> 41 & 7) + 1, frames)
    blocks = _Blocks(largest, smallest == largest)
    room = min(int.from_bytes(head[15:18], "big") or _ANY_FRAME_BYTES, _MOST_FRAME_BYTES)
    for tags in (_TAG_BYTES, _BIG_TAG_BYTES):
        tail = source.tail(room + tags)
        if frames and any(end == frames for _, end in _frames(tail, blocks)):
            return Header("FLAC", info)
    end = _last_end(source.tail(room + _TAG_BYTES), blocks)
    if frames:
        _refuse(source, frames, end)
    if not end:
        _refuse_endless(source, tail)
    length = bytes([head[21] & 0xF0 | end >> 32]) + (end & 0xFFFFFFFF).to_bytes(4, "big")
    return Header("FLAC", info._replace(frames=end), patch=(start + 21, length))


def _refuse(source: Source, frames: int, end: int) -> NoReturn:
    if end > frames or frames > source.size * MAX_FRAMES_PER_BYTE:
        found = f"its last frame ends at {end:,}" if end else f"{source.size:,} bytes hold fewer"
        what = f"its header claims {frames:,} samples, {found}"
        raise source.refusal("lying-header", what, "convert it again")
    what = f"truncated: no frame ends at the {frames:,} samples that its header claims"
    raise source.refusal("truncated", what, _FETCH)


def _refuse_endless(source: Source, tail: bytes) -> NoReturn:
    if not _SYNC.search(tail):
        raise source.refusal("no-samples", "is a valid file without a single sample")
    raise source.refusal("truncated", "truncated: its last frame is not complete", _FETCH)


def _frames(data: bytes, blocks: _Blocks) -> Iterator[tuple[int, int]]:
    """Where frames begin, and the sample behind their last; the last one first."""
    for match in reversed(list(_SYNC.finditer(data))):
        if (end := _frame_end(data[match.start() : match.start() + 16], blocks)) is not None:
            yield match.start(), end


def _frame_end(head: bytes, blocks: _Blocks) -> int | None:
    """Sample behind the last of a frame; None where this is no header of a frame."""
    if len(head) < 6:
        return None
    size_code, rate_code = head[2] >> 4, head[2] & 15
    ones = 8 - (head[4] ^ 0xFF).bit_length()  # a number of 1 to 7 bytes, as in UTF-8
    number, at = head[4] & (0x7F >> ones), max(5, 4 + ones)
    for byte in head[5:at]:
        number = number << 6 | byte & 0x3F
    size_bytes = {6: 1, 7: 2}.get(size_code, 0)
    rate_bytes = {12: 1, 13: 2, 14: 2}.get(rate_code, 0)
    stated = int.from_bytes(head[at : at + size_bytes], "big") + 1
    at += size_bytes + rate_bytes
    if size_code == 0 or at >= len(head) or _crc8(head[:at]) != head[at]:
        return None
    samples = stated if size_bytes else _SIZES[size_code]
    by_block = blocks.fixed and not head[1] & 1
    return (number * blocks.largest if by_block else number) + samples


def _last_end(data: bytes, blocks: _Blocks) -> int:
    """Sample behind the last complete frame at the end of the data; 0: none is complete.

    The checksum over whole frames is 0, whatever number of frames or zeros that is.
    """
    if data[-128:-125] == b"TAG":
        data = data[:-128]
    for at, end in itertools.islice(_frames(data, blocks), 3):
        if _crc16(data[at:]) == 0:
            return end
    return 0


def _crc8(data: bytes) -> int:
    value = 0
    for byte in data:
        value = _CRC8[value ^ byte]
    return value


def _crc16(data: bytes) -> int:
    value = 0
    for byte in data:
        value = (value << 8 & 0xFF00) ^ _CRC16[value >> 8 ^ byte]
    return value
