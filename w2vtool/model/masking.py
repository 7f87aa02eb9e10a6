"""Span masks, negatives and noise, vectorised, from counter-based randomness.

Every number is a hash of (key of the row, purpose, counter): the same on any device, for any
batch, worker or rank, and after any resume. Keys are int64, one per utterance and epoch, from
``plan.Bin``.

Shape legend: B batch, T frames, M masked frames per row, N negatives.
"""

from __future__ import annotations

import torch
from torch import Tensor

# Purposes: streams of one key that never meet.
SPANS, EQUALISE, CHANNELS, NEGATIVES, GUMBEL = 1, 2, 3, 4, 5

_GOLDEN = -7046029254386353131  # 0x9E3779B97F4A7C15 as a signed integer
_MIX_1 = -4658895280553007687  # 0xBF58476D1CE4E5B9
_MIX_2 = -7723592293110705685  # 0x94D049BB133111EB


def _shift(x: Tensor, bits: int) -> Tensor:
    """Logical right shift of int64."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def mix(x: Tensor) -> Tensor:
    """The finaliser of splitmix64 (Steele, Lea & Flood 2014): int64 → well-mixed int64."""
    x = x + _GOLDEN
    x = (x ^ _shift(x, 30)) * _MIX_1
    x = (x ^ _shift(x, 27)) * _MIX_2
    return x ^ _shift(x, 31)


def uniform(key_B: Tensor, purpose: int, count: int) -> Tensor:
    """``[B, count]`` float32 numbers in (0, 1), never 0 or 1: 23 bits of the hash, centred."""
    stream_B = mix(key_B ^ (purpose * _GOLDEN & 0x7FFFFFFFFFFFFFFF))
    counter = torch.arange(count, device=key_B.device)
    bits = _shift(mix(stream_B[:, None] + counter * 2 + 1), 41)
    return (bits.float() + 0.5) * 2**-23


def _ranks(u_BT: Tensor) -> Tensor:
    """Rank of every element in its row.

    Stable: which of two equal draws is first must not depend on the device or the row's width.
    """
    return u_BT.argsort(dim=1, stable=True).argsort(dim=1, stable=True)


def span_mask(
    key_B: Tensor,
    frames_B: Tensor,
    width: int,
    probability: float,
    length: int,
    *,
    min_spans: int = 2,
    purpose: int = SPANS,
) -> Tensor:
    """Masks of spans ``[B, width]``, True where masked; frames beyond ``frames_B`` stay False.

    ``probability`` is fairseq's: the chance that a frame starts a span, times ``length``. The law
    is that of ``compute_mask_indices`` v0.12.2 (static lengths, overlaps allowed): ⌊p·T/length + u⌋
    spans, at least ``min_spans``; starts without replacement from the first T − length frames, so
    the last frame is never masked. Rows too short for a span get a span of what fits, down to
    one masked frame of two, rather than an error.
    """
    # the rounding draw comes first: in last place it would change with the padding of the batch
    rounding_B, u_BT = uniform(key_B, purpose, width + 1).tensor_split([1], dim=1)
    spans_B = (probability * frames_B / length + rounding_B[:, 0]).floor().long()
    spans_B = spans_B.clamp(min=min_spans)
    span_B = torch.minimum(torch.full_like(frames_B, length), (frames_B - min_spans).clamp(min=1))
    spans_B = torch.minimum(spans_B, (frames_B - span_B).clamp(min=0))
    position = torch.arange(width, device=key_B.device)
    candidate_BT = position < (frames_B - span_B)[:, None]
    rank_BT = _ranks(u_BT.masked_fill(~candidate_BT, 2.0))
    start_BT = (rank_BT < spans_B[:, None]) & candidate_BT
    seen_BT = start_BT.long().cumsum(1)
    before_BT = position - span_B[:, None]
    earlier_BT = seen_BT.gather(1, before_BT.clamp(min=0)) * (before_BT >= 0)
    return seen_BT - earlier_BT > 0


def equalise(mask_BT: Tensor, key_B: Tensor) -> Tensor:
    """Un-mask random single frames until every row has as many masked frames as the poorest.

    Source: fairseq's ``require_same_masks``; it makes the targets a rectangle ``[B, M]``.
    """
    fewest = mask_BT.sum(1).min()
    u_BT = uniform(key_B, EQUALISE, mask_BT.shape[1]).masked_fill(~mask_BT, 2.0)
    return mask_BT & (_ranks(u_BT) < fewest)


def negatives(key_B: Tensor, masked: int, count: int) -> Tensor:
    """``[B, M, N]`` indices of other masked frames of the same row, uniform with replacement.

    Source: fairseq's ``sample_negatives``: draw from the M − 1 others by skipping the own index.
    With M < 2 there is nothing to draw from: raises ValueError.
    """
    if masked < 2:
        raise ValueError("negatives need at least two masked frames in a row")
    u = uniform(key_B, NEGATIVES, masked * count).view(-1, masked, count)
    draw_BMN = (u * (masked - 1)).long().clamp(max=masked - 2)
    own_M1 = torch.arange(masked, device=key_B.device)[:, None]
    return draw_BMN + (draw_BMN >= own_M1)


def gumbel(key_B: Tensor, masked: int, groups: int, entries: int) -> Tensor:
    """Gumbel noise ``[B·M, G, E]``: −log(−log u)."""
    u = uniform(key_B, GUMBEL, masked * groups * entries)
    return -(-u.log()).log().view(-1, groups, entries)
