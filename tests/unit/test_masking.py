"""Masks, negatives and noise: their law, and that they depend on nothing but their key."""

from __future__ import annotations

import hashlib
import math
from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from w2vtool.model import masking
from w2vtool.model.masking import (
    CHANNELS,
    EQUALISE,
    GUMBEL,
    NEGATIVES,
    SPANS,
    equalise,
    gumbel,
    mix,
    negatives,
    span_mask,
    uniform,
)

torch.set_num_threads(1)
PURPOSES = (SPANS, EQUALISE, CHANNELS, NEGATIVES, GUMBEL)
BASE = (0.65, 10)  # probability, length
DRAWN = "76054888c4026e06d7975e9e6bbcd956a1fe39ca2ef40f94d7731d2ae3cdbc4d"


def keys(count: int, seed: int = 0) -> Tensor:
    return mix(torch.arange(count) + (seed << 32))


def masks(rows: int, frames: int, p: float, length: int, seed: int = 0, **options: int) -> Tensor:
    return span_mask(keys(rows, seed), torch.full((rows,), frames), frames, p, length, **options)


def chi_square_p(statistic: float, freedom: int) -> float:
    """How often chance alone gives a statistic as large as this."""
    half = torch.tensor([freedom / 2, statistic / 2], dtype=torch.float64)
    return torch.special.gammaincc(half[0], half[1]).item()


def uniform_p(counts: np.ndarray, *, spread: float = 1.0) -> float:
    """p-value of counts under equal chances; ``spread`` is their variance relative to Poisson's."""
    expected = counts.mean()
    return chi_square_p(((counts - expected) ** 2 / expected).sum() / spread, counts.size - 1)


def same_law_p(a: np.ndarray, b: np.ndarray) -> float:
    """p-value of two histograms under one law; cells too rare for the test are put together."""
    rare = a + b < 20
    a = np.append(a[~rare], a[rare].sum()).astype(float)
    b = np.append(b[~rare], b[rare].sum()).astype(float)
    a, b = a[a + b > 0], b[a + b > 0]
    up, down = math.sqrt(b.sum() / a.sum()), math.sqrt(a.sum() / b.sum())
    return chi_square_p(((up * a - down * b) ** 2 / (a + b)).sum(), len(a) - 1)


def runs(mask_BT: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where the masked stretches start, and how long they are."""
    edges = np.diff(mask_BT.astype(np.int8), axis=1, prepend=0, append=0)
    starts, ends = np.nonzero(edges == 1), np.nonzero(edges == -1)
    return starts[1], ends[1] - starts[1]


def reference(rng: np.random.Generator, frames: int, p: float, length: int) -> np.ndarray:
    """One row of a mask, slowly: a rounded number of spans, their starts without replacement.

    The description is that of facts on fairseq v0.12.2: ⌊p·T/length + u⌋ spans, two at least, that
    start at 0 … T − length − 1 and may overlap.
    """
    spans = max(2, math.floor(p * frames / length + rng.random()))
    urn, mask = list(range(frames - length)), np.zeros(frames, bool)
    for _ in range(spans):
        start = urn.pop(int(rng.integers(len(urn))))
        for frame in range(start, start + length):
            mask[frame] = True
    return mask


# -- the hash ------------------------------------------------------------------------------------


def test_mix_is_the_published_splitmix64() -> None:
    # the first three outputs for the seed 1234567; a state is the seed plus n golden ratios
    golden = -7046029254386353131
    states = torch.tensor([1234567]) + golden * torch.arange(3)
    want = np.array([6457827717110365317, 3203168211198807973, 9817491932198370423], np.uint64)
    assert mix(states).tolist() == want.astype(np.int64).tolist()


@pytest.mark.parametrize("purpose", PURPOSES)
def test_uniform_is_uniform_and_never_0_or_1(purpose: int) -> None:
    u = uniform(keys(200, purpose), purpose, 2_000)
    assert u.dtype == torch.float32
    assert u.min() > 0
    assert u.max() < 1
    counts = torch.histc(u, 256, 0, 1).numpy()
    assert uniform_p(counts) > 1e-4


@pytest.mark.parametrize("bits", [0, -1])
def test_the_extremes_of_the_hash_are_inside_of_0_and_1(
    monkeypatch: pytest.MonkeyPatch, bits: int
) -> None:
    monkeypatch.setattr(masking, "mix", lambda x: torch.full_like(x, bits))
    u = uniform(torch.zeros(1, dtype=torch.long), SPANS, 1)
    assert 0 < u.item() < 1
    assert math.isfinite(gumbel(torch.zeros(1, dtype=torch.long), 1, 1, 1).item())


def joint_p(a: Tensor, b: Tensor) -> float:
    """p-value of pairs under independence and uniformity, on a grid of 16 × 16."""
    cell = (a * 16).long() * 16 + (b * 16).long()
    return uniform_p(cell.flatten().bincount(minlength=256).numpy())


def test_one_number_says_nothing_about_the_next() -> None:
    u = uniform(keys(100), SPANS, 2_001)
    assert joint_p(u[:, :-1:2], u[:, 1::2]) > 1e-4
    assert joint_p(u[:, :1_000], u[:, 1_000:2_000]) > 1e-4


def test_purposes_of_one_key_are_independent() -> None:
    key_B = keys(100)
    streams = {purpose: uniform(key_B, purpose, 1_000) for purpose in PURPOSES}
    for a, b in combinations(streams.values(), 2):
        assert joint_p(a, b) > 1e-4


def test_neighbouring_keys_are_independent() -> None:
    u = uniform(torch.arange(201), SPANS, 1_000)
    assert joint_p(u[:-1], u[1:]) > 1e-4


def test_a_number_depends_on_its_key_and_place_alone() -> None:
    u = uniform(keys(9), SPANS, 50)
    assert torch.equal(uniform(keys(9)[4:5], SPANS, 7), u[4:5, :7])


# -- span masks ----------------------------------------------------------------------------------


def test_a_span_starts_anywhere_but_in_the_last_frames_with_equal_chances() -> None:
    mask = masks(40_000, 90, 0.0, 10, min_spans=1).numpy()
    starts, lengths = runs(mask)
    assert len(starts) == 40_000
    assert (lengths == 10).all()
    counts = np.bincount(starts, minlength=80)
    assert len(counts) == 80  # 0 … T − length − 1: the last frame is never masked
    assert uniform_p(counts) > 1e-4


def test_starts_are_drawn_without_replacement_with_equal_chances() -> None:
    # spans of one frame are their starts: 13 of the first 39 of 40 frames
    rows, frames = 5_000, 40
    mask = masks(rows, frames, 13 / frames, 1)
    assert set(mask.sum(1).tolist()) <= {12, 13, 14}
    counts = mask.sum(0).numpy()
    assert counts[-1] == 0
    assert uniform_p(counts[:-1], spread=1 - 13 / 39) > 1e-4


def test_the_number_of_spans_is_rounded_at_random_to_keep_its_mean() -> None:
    mask = masks(20_000, 50, 0.11, 1)  # 5.5 spans
    spans = mask.sum(1)
    assert set(spans.tolist()) == {5, 6}
    assert (spans == 6).float().mean().item() == pytest.approx(0.5, abs=4.5 * 0.5 / 20_000**0.5)


@pytest.mark.parametrize(
    ("frames", "p", "length"), [(781, 0.65, 10), (249, 0.65, 10), (99, 0.65, 10), (60, 0.5, 4)]
)
def test_masks_have_the_law_of_fairseqs(frames: int, p: float, length: int) -> None:
    rows = 2_000 if frames == 781 else 4_000
    rng = np.random.default_rng(7)
    theirs = np.stack([reference(rng, frames, p, length) for _ in range(rows)])
    ours = masks(rows, frames, p, length, seed=7).numpy()
    their_starts, their_lengths = runs(theirs)
    our_starts, our_lengths = runs(ours)
    for name, a, b, cells in (
        ("start of a stretch", our_starts, their_starts, frames),
        ("length of a stretch", our_lengths, their_lengths, frames + 1),
        ("masked frames", ours.sum(1), theirs.sum(1), frames + 1),
    ):
        p_value = same_law_p(np.bincount(a, minlength=cells), np.bincount(b, minlength=cells))
        assert p_value > 1e-4, name
    # every frame is masked as often; 5 standard errors of a difference of two fractions
    difference = ours.mean(0) - theirs.mean(0)
    assert np.abs(difference).max() < 5 * math.sqrt(0.5 / rows)


def poorest(masked_BN: np.ndarray, frames: int) -> tuple[float, float]:
    """Percentage that is left masked in batches, from the counts of their rows, and its error."""
    left = 100 * masked_BN.min(1) / frames
    return float(left.mean()), float(left.std() / math.sqrt(len(left)))


def counts_like_fairseq(batches: int, size: int, frames: int, *, one_draw: bool) -> np.ndarray:
    """Masked frames of rows in batches, by the law above; ``one_draw`` rounds as a batch does."""
    rng = np.random.default_rng(5)
    rounding = rng.random((batches, 1 if one_draw else size)).repeat(size if one_draw else 1, 1)
    order = rng.random((batches, size, frames - 10)).argsort(-1).argsort(-1)
    starts = order < np.floor(0.65 * frames / 10 + rounding)[..., None]
    return (
        np.lib.stride_tricks.sliding_window_view(
            np.pad(starts, ((0, 0), (0, 0), (9, 10))), 10, axis=-1
        )
        .any(-1)
        .sum(-1)
    )


@pytest.mark.parametrize(
    ("frames", "before", "after"),
    # fairseq's percentages by simulation, before and after equalising 5 and 16 rows
    [(781, 49.1, {5: 46.4, 16: 45.0}), (249, 49.2, {5: 44.5, 16: 41.9}), (99, 49.8, {5: 42.4})],
)
def test_masked_percentage_before_and_after_equalising(
    frames: int, before: float, after: dict[int, float]
) -> None:
    rows = 8_000
    mask = masks(rows, frames, *BASE)
    share = 100 * mask.float().mean(1)
    error = share.std().item() / math.sqrt(rows)
    assert share.mean().item() == pytest.approx(before, abs=0.1 + 4.5 * error)
    for size, expected in after.items():
        ours, error = poorest(mask.sum(1).view(-1, size).numpy(), frames)
        # 0.05 for the rounding of the published number; for its own error as much as for ours
        tolerance = 0.05 + 4.5 * math.sqrt(2) * error
        # a draw for each row, not for the batch: matters where spans are few (the next test)
        assert ours == pytest.approx(expected, abs=tolerance + (0.4 if frames == 99 else 0))


def test_short_crops_lose_a_little_more_because_each_row_rounds_its_spans_by_itself() -> None:
    frames, size, batches = 99, 16, 2_000
    ours, error = poorest(
        masks(batches * size, frames, *BASE).sum(1).view(-1, size).numpy(), frames
    )
    by_row = poorest(counts_like_fairseq(batches, size, frames, one_draw=False), frames)
    by_batch = poorest(counts_like_fairseq(batches, size, frames, one_draw=True), frames)
    assert ours == pytest.approx(by_row[0], abs=4.5 * math.hypot(error, by_row[1]))
    assert by_batch[0] == pytest.approx(38.0, abs=0.05 + 4.5 * math.sqrt(2) * by_batch[1])
    assert 0.3 < by_batch[0] - ours < 1.0


def test_a_masked_stretch_is_14_6_frames_long_on_average_and_10_in_the_median() -> None:
    _, lengths = runs(masks(1_000, 781, *BASE).numpy())
    assert lengths.mean() == pytest.approx(14.65, abs=0.2)
    assert np.median(lengths) == 10
    assert lengths.min() == 10


@pytest.mark.parametrize(
    ("p", "width", "percent"), [(0.1, 768, 9.8), (0.25, 1024, 22.8), (0.5, 768, 40.0)]
)
def test_channel_masks_hide_the_published_share(p: float, width: int, percent: float) -> None:
    mask = masks(2_000, width, p, 64, min_spans=0, purpose=CHANNELS)
    assert 100 * mask.float().mean().item() == pytest.approx(percent, abs=1.5)


def test_channel_masks_may_be_empty() -> None:
    mask = masks(4_000, 768, 0.02, 64, min_spans=0, purpose=CHANNELS)  # 0.24 spans
    assert set(mask.sum(1).tolist()) == {0, 64}
    assert mask.any(1).float().mean().item() == pytest.approx(0.24, abs=0.03)


@pytest.mark.parametrize("length", [1, 5, 10])
def test_rows_shorter_than_a_span_are_masked_as_far_as_they_go(length: int) -> None:
    frames_B = torch.arange(16).repeat(50)
    mask = span_mask(keys(len(frames_B)), frames_B, 15, 0.65, length)
    inside = torch.arange(15) < frames_B[:, None] - 1  # neither padding nor the last frame
    assert not (mask & ~inside).any()
    assert (mask.sum(1) >= (frames_B - 1).clamp(0, 2)).all()


@settings(deadline=None, max_examples=60)
@given(
    frames=st.lists(st.integers(0, 60), min_size=1, max_size=6),
    padding=st.integers(0, 30),
    p=st.floats(0, 1),
    length=st.integers(1, 20),
    min_spans=st.integers(0, 2),
    seed=st.integers(0, 1000),
)
def test_no_row_raises_and_neither_padding_nor_the_last_frame_is_masked(
    frames: list[int], padding: int, p: float, length: int, min_spans: int, seed: int
) -> None:
    frames_B, width = torch.tensor(frames), max(frames) + padding
    mask = span_mask(keys(len(frames), seed), frames_B, width, p, length, min_spans=min_spans)
    assert mask.shape == (len(frames), width)
    assert not (mask & (torch.arange(width) >= frames_B[:, None] - 1)).any()


def test_a_row_has_the_same_mask_in_any_batch_and_at_any_padding() -> None:
    key_B, frames_B = keys(300), 20 + torch.arange(300) * 7 % 280
    together = span_mask(key_B, frames_B, 400, *BASE)
    for rows, width in ((slice(0, 300), 333), (slice(7, 100, 3), 300), (slice(299, 300), 301)):
        some = span_mask(key_B[rows], frames_B[rows], width, *BASE)
        assert torch.equal(some, together[rows, :width])


def test_the_spans_start_at_the_first_different_draws() -> None:
    rows, frames, spans = 200, 60, 20
    places = frames - 1
    mask = masks(rows, frames, spans / frames, 1)  # spans of one frame are their starts
    bits = (uniform(keys(rows), SPANS, 400) * 2**23).long()
    for row, (rounding, *draws) in enumerate(bits.tolist()):
        count = math.floor(spans + (rounding + 0.5) / 2**23)
        first = list(dict.fromkeys(draw * places >> 23 for draw in draws))[:count]
        assert mask[row].nonzero()[:, 0].tolist() == sorted(first)


@pytest.mark.parametrize("share", [0.03, 0.5, 0.97, 1.0])
def test_as_many_spans_as_there_are_places_for_are_found(share: float) -> None:
    mask = masks(1_000, 40, share, 1)  # 39 places
    assert set(mask.sum(1).tolist()) <= {
        min(max(2, math.floor(share * 40) + up), 39) for up in (0, 1)
    }


def test_masks_are_the_same_on_every_platform_and_in_every_version() -> None:
    # a change here means that no run can be resumed exactly: it belongs in the change log
    key_B, digest = keys(50), hashlib.sha256()
    spans = span_mask(key_B, 20 + torch.arange(50) * 5, 300, *BASE)
    channels = span_mask(key_B, torch.full((50,), 96), 96, 0.25, 8, min_spans=0, purpose=CHANNELS)
    for made in (spans, channels, equalise(spans, key_B), negatives(key_B, 30, 10)):
        digest.update(made.long().numpy().astype("<i8").tobytes())
    assert digest.hexdigest() == DRAWN


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_masks_are_the_same_on_a_gpu() -> None:
    key_B, frames_B = keys(64), 20 + torch.arange(64) * 12
    mask = span_mask(key_B, frames_B, 780, *BASE)
    there = span_mask(key_B.cuda(), frames_B.cuda(), 780, *BASE)
    assert torch.equal(there.cpu(), mask)
    assert torch.equal(equalise(there, key_B.cuda()).cpu(), equalise(mask, key_B))


def test_another_key_gives_another_mask() -> None:
    mask = masks(2_000, 249, *BASE)
    assert len(mask.unique(dim=0)) == 2_000


# -- equalising ----------------------------------------------------------------------------------


@settings(deadline=None, max_examples=60)
@given(rows=st.integers(1, 6), frames=st.integers(1, 50), seed=st.integers(0, 10_000))
def test_equalising_gives_all_rows_the_fewest_masked_frames_and_only_removes(
    rows: int, frames: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    mask = torch.rand(rows, frames, generator=generator) < torch.rand(rows, 1, generator=generator)
    out = equalise(mask, keys(rows, seed))
    assert (out.sum(1) == mask.sum(1).min()).all()
    assert not (out & ~mask).any()


def test_equalising_removes_each_masked_frame_with_equal_chances() -> None:
    mask = torch.ones(2, 40, dtype=torch.bool)
    mask[0, 10:] = False
    kept = torch.zeros(40)
    for seed in range(3_000):
        kept += equalise(mask, keys(2, seed))[1]
    assert uniform_p(kept.numpy(), spread=1 - 10 / 40) > 1e-4


# -- negatives and noise -------------------------------------------------------------------------


@settings(deadline=None, max_examples=100)
@given(
    st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=5),
    st.one_of(st.integers(2, 40), st.integers(300, 800)),
    st.integers(1, 30),
)
def test_a_negative_is_another_masked_frame_of_its_row(
    key_B: list[int], masked: int, count: int
) -> None:
    rows = len(key_B)
    index = negatives(torch.tensor(key_B), masked, count)
    assert index.shape == (rows, masked, count)
    assert index.min() >= 0
    assert index.max() < masked
    assert not (index == torch.arange(masked)[:, None]).any()


@pytest.mark.parametrize("bits", [0, -1])
def test_not_even_the_extremes_of_the_hash_make_a_frame_its_own_negative(
    monkeypatch: pytest.MonkeyPatch, bits: int
) -> None:
    monkeypatch.setattr(masking, "mix", lambda x: torch.full_like(x, bits))
    for masked in (2, 3, 350, 100_000):
        index = negatives(torch.zeros(1, dtype=torch.long), masked, 1)
        assert not (index == torch.arange(masked)[:, None]).any()
        assert index.min() >= 0
        assert index.max() < masked


def test_negatives_are_uniform_over_the_others() -> None:
    masked = 12
    index = negatives(keys(2_000), masked, 20)
    offset = (index - torch.arange(masked)[:, None]) % masked
    for j in range(masked):
        counts = offset[:, j].flatten().bincount(minlength=masked).numpy()
        assert counts[0] == 0
        assert uniform_p(counts[1:]) > 1e-4


def test_negatives_need_a_second_masked_frame() -> None:
    with pytest.raises(ValueError, match="two masked frames"):
        negatives(keys(1), 1, 10)


def test_gumbel_noise_has_the_mean_and_variance_of_the_gumbel_law() -> None:
    noise = gumbel(keys(20), 30, 2, 320)
    assert noise.shape == (20 * 30, 2, 320)
    assert torch.isfinite(noise).all()
    n, variance = noise.numel(), math.pi**2 / 6
    assert noise.double().mean().item() == pytest.approx(0.5772157, abs=4.5 * (variance / n) ** 0.5)
    # the fourth moment of the law is 5.4 σ⁴, so the variance has a standard error of σ²·√(4.4/n)
    assert noise.double().var().item() == pytest.approx(variance, rel=4.5 * (4.4 / n) ** 0.5)
