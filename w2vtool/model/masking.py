"""Span masks, negatives and noise, vectorised, from counter-based randomness.

Every number is a hash of (key of the row, purpose, counter): the same on any device, for any
batch, worker or rank, and after any resume. Keys are int64, one per utterance and epoch, from
``plan.Bin``.

Shape legend: B batch, T frames, M masked frames per row, N negatives.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

# Purposes: streams of one key that never meet.
SPANS, EQUALISE, CHANNELS, NEGATIVES, GUMBEL = 1, 2, 3, 4, 5

_GOLDEN = -7046029254386353131  # 0x9E3779B97F4A7C15 as a signed integer
_MIX_1 = -4658895280553007687  # 0xBF58476D1CE4E5B9
_MIX_2 = -7723592293110705685  # 0x94D049BB133111EB


def _shift(x: Tensor, bits: int) -> Tensor:
    """Logical right shift of int64."""
    return (x >> bits).bitwise_and_((1 << (64 - bits)) - 1)


def mix(x: Tensor) -> Tensor:
    """The finaliser of splitmix64 (Steele, Lea & Flood 2014): int64 → well-mixed int64."""
    x = x + _GOLDEN  # a copy, changed in place from here on
    x.bitwise_xor_(_shift(x, 30)).mul_(_MIX_1)
    x.bitwise_xor_(_shift(x, 27)).mul_(_MIX_2)
    return x.bitwise_xor_(_shift(x, 31))


def _bits(key_B: Tensor, purpose: int, count: int) -> Tensor:
    """``[B, count]`` int64 of 23 random bits."""
    stream_B = mix(key_B ^ (purpose * _GOLDEN & 0x7FFFFFFFFFFFFFFF))
    counter = torch.arange(1, 2 * count, 2, device=key_B.device)
    return _shift(mix(stream_B[:, None] + counter), 41)


def _centred(bits: Tensor) -> Tensor:
    """23 bits as a float32 number in (0, 1), never 0 or 1."""
    return (bits.float() + 0.5) * 2**-23


def uniform(key_B: Tensor, purpose: int, count: int) -> Tensor:
    """``[B, count]`` float32 numbers in (0, 1), never 0 or 1: 23 bits of the hash, centred."""
    return _centred(_bits(key_B, purpose, count))


def _enough(count_B: Tensor, of_B: Tensor) -> int:
    """How many draws from ``of_B`` hold ``count_B`` different ones, in each row.

    Twice the mean number (of the coupon collector), and 32 times the mean of the last one alone:
    too few with a chance below 3e-11 (Janson 2018, "Tail bounds for sums of geometric and
    exponential variables", theorem 2.1).
    """
    of_B = of_B.clamp(min=1).double()
    last_B = of_B / (of_B - count_B + 1)
    return math.ceil((2 * of_B * last_B.log() + 32 * last_B).max().item())


def _different(bits_BN: Tensor, count_B: Tensor, of_B: Tensor) -> tuple[Tensor, Tensor]:
    """``[B, N]`` draws from 0 … ``of_B`` − 1, and which are the first ``count_B`` different ones.

    Every set of so many is as likely as any other. What follows them is not used, so the number of
    draws, which the batch decides, changes nothing.
    """
    draw_BN = bits_BN * of_B[:, None] >> 23
    # small numbers in small integers: memory that is asked for anew each time costs more than sums
    small = torch.int16 if draw_BN.shape[1] < 2**15 else torch.int64
    number = torch.arange(draw_BN.shape[1], device=draw_BN.device, dtype=small).expand_as(draw_BN)
    never_BT = number.new_full((len(draw_BN), max(1, int(of_B.max()))), draw_BN.shape[1])
    first_BT = never_BT.scatter_reduce_(1, draw_BN, number, "amin")
    new_BN = first_BT.gather(1, draw_BN) == number
    return draw_BN, new_BN.logical_and_(new_BN.cumsum(1, dtype=small) <= count_B[:, None])


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
    the last frame is never masked. The draw u is a row's own (fairseq: the batch's, where nothing
    is padded), or a mask would depend on the batch. Rows too short for a span get a span of what
    fits, down to one masked frame of two, rather than an error.
    """
    span_B = torch.minimum(torch.full_like(frames_B, length), (frames_B - min_spans).clamp(min=1))
    places_B = (frames_B - span_B).clamp(min=0)
    mean_B = probability * frames_B / length
    most_B = torch.minimum((mean_B + 1).long().clamp(min=min_spans), places_B)
    bits_BN = _bits(key_B, purpose, 1 + _enough(most_B, places_B))
    spans_B = (mean_B + _centred(bits_BN[:, 0])).long().clamp(min=min_spans)
    spans_B = torch.minimum(spans_B, places_B)
    start_BN, taken_BN = _different(bits_BN[:, 1:], spans_B, places_B)
    # up where a span begins, down behind its end: above 0 inside of any
    edge_BT = torch.zeros((len(key_B), width + 2), dtype=torch.int8, device=key_B.device)
    edge_BT.scatter_add_(1, start_BN, taken_BN.to(torch.int8))
    edge_BT.scatter_add_(1, start_BN + span_B[:, None], taken_BN.to(torch.int8).neg_())
    # bool() and not > 0, which takes longer than all the rest on a CPU
    small = torch.int16 if start_BN.shape[1] < 2**15 else torch.int32
    return edge_BT[:, :width].cumsum(1, dtype=small).bool()


def equalise(mask_BT: Tensor, key_B: Tensor) -> Tensor:
    """Un-mask random single frames until every row has as many masked frames as the poorest.

    Source: fairseq's ``require_same_masks``; it makes the targets a rectangle ``[B, M]``.
    """
    masked_B = mask_BT.sum(1)
    excess_B = masked_B - masked_B.min()
    bits_BN = _bits(key_B, EQUALISE, _enough(excess_B, masked_B))
    nth_BN, taken_BN = _different(bits_BN, excess_B, masked_B)
    nth_BN += (masked_B.cumsum(0) - masked_B)[:, None]  # in the list of all rows' masked frames
    flat = mask_BT.flatten()
    dropped = flat.nonzero()[:, 0].index_select(0, nth_BN.masked_select(taken_BN))
    return flat.index_fill(0, dropped, False).view_as(mask_BT)


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
