"""The plan: every utterance once an epoch, in bins that fit, from three integers alone."""

from __future__ import annotations

import hashlib
import tracemalloc
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from w2vtool import plan as plan_module
from w2vtool.errors import DataError
from w2vtool.plan import Bin, Plan, key, mix

SOURCE = "5f2e" * 16  # a manifest's hash
KEY_1_2_3 = 7510213797696614745
STREAMS = {  # of crops, and of whole utterances
    True: "a43d7217d70f6b24c0932004f6a3599ae01f7153cc29dd75c291a611fe2adcba",
    False: "5c515fc7d4c41b0e31ce1c8d248310fa3100f6db04063cb8acf0beac75fd5407",
}


def plan(seconds: Any, **changes: Any) -> Plan:
    given = {"bin_seconds": 30.0, "min_seconds": 0.5, "max_seconds": 20.0, "crop": True}
    given |= {"seed": 1, "source": SOURCE}
    return Plan(np.asarray(seconds, float), **(given | changes))


def lengths(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(0.6, 19, count)


def epoch(plan: Plan, number: int = 0) -> list[Bin]:
    first = number * plan.bins_per_epoch
    return [plan.bin(first + i) for i in range(plan.bins_per_epoch)]


def same(a: Bin, b: Bin) -> bool:
    return (
        (a.number, a.epoch, a.key) == (b.number, b.epoch, b.key)
        and np.array_equal(a.rows, b.rows)
        and np.array_equal(a.keys, b.keys)
    )


seconds_lists = st.lists(st.floats(0.1, 40, allow_nan=False), min_size=1, max_size=120)
quadratic = st.none() | st.floats(30, 300)


@settings(deadline=None, max_examples=80)
@given(
    seconds_lists,
    st.booleans(),
    st.floats(35, 200),
    st.integers(0, 3),
    st.integers(0, 2),
    quadratic,
)
def test_every_usable_row_is_in_exactly_one_bin_of_an_epoch_and_every_bin_fits(
    seconds: list[float],
    crop: bool,
    bin_seconds: float,
    seed: int,
    number: int,
    quadratic_seconds: float | None,
) -> None:
    usable = [i for i, s in enumerate(seconds) if s >= 0.5 and (crop or s <= 20)]
    if not usable:
        with pytest.raises(DataError, match="none of"):
            plan(seconds, crop=crop, bin_seconds=bin_seconds)
        return
    made = plan(
        seconds,
        crop=crop,
        bin_seconds=bin_seconds,
        seed=seed,
        quadratic_seconds=quadratic_seconds,
    )
    bins = epoch(made, number)
    assert sorted(int(row) for part in bins for row in part.rows) == usable
    assert made.utterances == len(usable)
    assert made.left_out == len(seconds) - len(usable)
    for part in bins:
        assert part.epoch == number
        assert len(part.rows)
        lengths = np.minimum(np.array(seconds)[part.rows], 20)
        assert part.shortest <= lengths.min()
        assert lengths.max() <= part.longest
        length = part.shortest if crop else part.longest
        counted = length + length**2 / (quadratic_seconds or np.inf)
        assert len(lengths) * counted <= bin_seconds * (1 + 1e-9)
        cost = made.costs(np.array([part.number]))
        assert cost == pytest.approx(len(lengths) * counted)


def test_any_bin_can_be_had_in_any_order() -> None:
    made = plan(lengths(200))
    count = 3 * made.bins_per_epoch
    in_order = [made.bin(n) for n in range(count)]
    for n in np.random.default_rng(3).permutation(count).tolist():
        assert same(plan(lengths(200)).bin(n), in_order[n])  # by a plan that has seen nothing
        assert same(made.bin(n), in_order[n])  # and by one that has just seen another epoch


def common_voice_like(rows: int) -> np.ndarray:
    """Single sentences: log-normal around 5 s."""
    return np.clip(np.random.default_rng(0).lognormal(np.log(4.8), 0.38, rows), 1, 15)


@pytest.fixture(scope="module")
def million() -> np.ndarray:
    return common_voice_like(1_000_000)


@pytest.fixture
def work(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Numbers that were hashed, call by call: what a bin costs."""
    counts: list[int] = []

    def counting(x: np.ndarray) -> np.ndarray:
        counts.append(x.size)
        return mix(x)

    monkeypatch.setattr(plan_module, "mix", counting)
    return counts


def test_the_first_bin_of_update_a_million_costs_what_the_first_of_all_costs(
    million: np.ndarray, work: list[int]
) -> None:
    costs = []
    for update in (0, 10**6):
        made = plan(million, bin_seconds=87.5)
        work.clear()
        made.bin(update * 64)
        costs.append(sum(work))
    assert costs[1] <= 1.2 * costs[0]
    assert costs[0] < 0.1 * len(million)  # the bins of an epoch and one bucket, not the rows


def test_an_epoch_is_shuffled_once_and_so_is_each_bucket_that_is_met(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sizes: list[int] = []
    shuffle = Plan._shuffle

    def counting(self: Plan, size: int, *words: int) -> np.ndarray:
        sizes.append(size)
        return shuffle(self, size, *words)

    monkeypatch.setattr(Plan, "_shuffle", counting)
    made = plan(lengths(2_000))
    epoch(made, 3)
    assert sum(sizes) == made.bins_per_epoch + made.utterances


def test_a_plan_takes_at_most_16_bytes_a_row_with_all_of_an_epoch_in_use(
    million: np.ndarray,
) -> None:
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        made = plan(million, bin_seconds=87.5)
        for number in range(0, made.bins_per_epoch, 50):  # every bucket among them
            made.bin(number)
        taken = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert taken <= 16 * len(million)


def test_epochs_have_the_same_rows_in_another_order_and_other_bins() -> None:
    made = plan(lengths(300), bin_seconds=87.5)
    first, second = epoch(made, 0), epoch(made, 1)
    order = [np.concatenate([part.rows for part in bins]).tolist() for bins in (first, second)]
    assert sorted(order[0]) == sorted(order[1])
    assert order[0] != order[1]
    company = [{frozenset(part.rows.tolist()) for part in bins} for bins in (first, second)]
    assert len(company[0] & company[1]) < len(company[0]) / 10


@pytest.mark.parametrize("change", [{"seed": 2}, {"source": "6" + SOURCE[1:]}])
def test_another_seed_or_manifest_gives_another_plan(change: dict[str, Any]) -> None:
    a, b = plan(lengths(300)), plan(lengths(300), **change)
    assert [p.rows.tolist() for p in epoch(a)] != [p.rows.tolist() for p in epoch(b)]
    keys = [set(np.concatenate([p.keys for p in epoch(x)]).tolist()) for x in (a, b)]
    assert not keys[0] & keys[1]


def keys_of(made: Plan, number: int) -> dict[int, int]:
    bins = epoch(made, number)
    return {int(r): int(k) for p in bins for r, k in zip(p.rows, p.keys, strict=True)}


def test_a_row_has_a_key_of_its_own_in_every_epoch() -> None:
    made = plan(lengths(300))
    seen = [key for number in range(4) for key in keys_of(made, number).values()]
    assert len(set(seen)) == 4 * 300
    assert min(seen) >= 0
    assert max(seen) > 2**62  # all 63 bits are in use
    assert epoch(made)[0].keys.dtype == np.int64


def test_a_rows_key_does_not_depend_on_how_bins_are_cut() -> None:
    for number in (0, 5):
        small, large = plan(lengths(300)), plan(lengths(300), bin_seconds=200.0)
        assert keys_of(small, number) == keys_of(large, number)


def test_bins_have_keys_of_their_own() -> None:
    made = plan(lengths(300))
    keys = {part.key for number in range(3) for part in epoch(made, number)}
    assert len(keys) == 3 * made.bins_per_epoch


def test_with_crop_long_rows_are_used_and_counted_as_cropped() -> None:
    seconds = [5.0, 100.0, 400.0]
    made = plan(seconds, crop=True)
    assert (made.utterances, made.left_out, made.seconds) == (3, 0, 45.0)


def test_without_crop_long_rows_are_left_out_and_counted() -> None:
    made = plan([5.0, 20.0, 20.1, 0.4], crop=False)
    assert (made.utterances, made.left_out, made.seconds) == (2, 2, 25.0)


@pytest.mark.parametrize("crop", [True, False])
def test_a_row_that_is_longer_than_a_bin_is_an_error(crop: bool) -> None:
    with pytest.raises(DataError, match=r"15\.0 s does not fit a bin of 10\.0 s") as caught:
        plan([3.0, 15.0], bin_seconds=10.0, crop=crop)
    assert "bin_seconds" in caught.value.hint


def test_long_utterances_count_more_where_attention_does() -> None:
    seconds = np.where(np.arange(4_000) % 2, 3.0, 18.0)
    plain, made = (
        plan(seconds, bin_seconds=90.0),
        plan(seconds, bin_seconds=90.0, quadratic_seconds=20.0),
    )
    for x, most in ((plain, {3.0: 30, 18.0: 5}), (made, {3.0: 26, 18.0: 2})):
        sizes: dict[float, int] = {}
        for part in epoch(x):
            if part.shortest == part.longest:  # one bucket has both lengths
                sizes[part.longest] = max(len(part.rows), sizes.get(part.longest, 0))
        assert sizes.keys() == most.keys()  # 3 s count 3.45 s, 18 s count 34.2 s
        assert all(0.9 * most[length] < size <= most[length] for length, size in sizes.items())
    slight = plan(seconds, bin_seconds=91.0, quadratic_seconds=1e12)
    assert slight.bins_per_epoch == plan(seconds, bin_seconds=91.0).bins_per_epoch


def test_an_utterance_that_does_not_fit_because_it_counts_more_is_told_what_it_counts() -> None:
    with pytest.raises(DataError, match=r"18\.0 s, which counts 34\.2 s, does not fit a bin of 30"):
        plan([18.0], quadratic_seconds=20.0)


def test_costs_can_be_asked_for_across_epochs_and_leave_the_stream_as_it_is() -> None:
    made, fresh = plan(lengths(300)), plan(lengths(300))
    for number in range(2 * made.bins_per_epoch + 3):
        made.costs(np.arange(number, number + 9))
        assert same(made.bin(number), fresh.bin(number))


def test_a_bin_holds_rows_of_similar_length() -> None:
    seconds = lengths(3_000)
    made = plan(seconds, bin_seconds=87.5)
    spread = [np.ptp(seconds[part.rows]) for part in epoch(made)]
    assert np.mean(spread) < 0.5


# -- the hash ------------------------------------------------------------------------------------


def test_mix_is_the_published_splitmix64() -> None:
    golden = np.uint64(0x9E3779B97F4A7C15)
    with np.errstate(over="ignore"):
        states = np.uint64(1234567) + golden * np.arange(3, dtype=np.uint64)
    assert mix(states).tolist() == [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
    ]


@given(st.lists(st.integers(-(2**70), 2**70), max_size=4), st.integers(0, 2**64))
def test_a_key_is_63_bits_and_depends_on_the_order_and_number_of_its_words(
    words: list[int], extra: int
) -> None:
    assert 0 <= key(*words) < 2**63
    assert key(*words, extra) != key(*words)
    if len(words) > 1 and words[0] % 2**64 != words[1] % 2**64:
        assert key(words[1], words[0], *words[2:]) != key(*words)


def test_the_plan_is_the_same_on_every_platform_and_in_every_version() -> None:
    # a change here means that no run can be resumed exactly: it belongs in the change log
    assert key(1, 2, 3) == KEY_1_2_3
    for crop, want in STREAMS.items():
        digest = hashlib.sha256()
        made = plan(np.arange(200) % 37 * 0.5 + 0.7, crop=crop)
        for n in range(2 * made.bins_per_epoch):
            part = made.bin(n)
            digest.update(part.rows.astype("<i8").tobytes() + part.keys.astype("<i8").tobytes())
            digest.update(part.key.to_bytes(8, "little"))
        assert digest.hexdigest() == want
