"""Parts: no speaker in two, near the wanted size, made like the whole, the same for one seed."""

from __future__ import annotations

import random
from collections import defaultdict
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from w2vtool import partition
from w2vtool.errors import ConfigError, DataError
from w2vtool.manifest import Utterance
from w2vtool.partition import Part, parse


def corpus(speakers: int, rows: int, seed: int = 0, **more: Any) -> list[Utterance]:
    """Rows of 1 to 20 s; some people say much more than others."""
    rng = np.random.default_rng(seed)
    who = rng.choice(speakers, rows, p=rng.dirichlet(np.ones(speakers) * 3))
    return [
        Utterance(f"u{i}", f"{i}.wav", int(rng.integers(16_000, 320_000)) / 16_000, **more)
        if not speakers
        else Utterance(
            f"u{i}",
            f"{i}.wav",
            int(rng.integers(16_000, 320_000)) / 16_000,
            speaker=f"s{who[i]}",
            lang=("de", "en", None)[who[i] % 3],
        )
        for i in range(rows)
    ]


def seconds(rows: list[Utterance], found: partition.Parts, part: int) -> float:
    return sum(r.duration for r, p in zip(rows, found.of_row, strict=True) if p == part)


def people(rows: list[Utterance], found: partition.Parts) -> dict[str, set[int]]:
    parts = defaultdict(set)
    for row, part in zip(rows, found.of_row, strict=True):
        parts[row.speaker or row.id].add(int(part))
    return parts


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_no_speaker_is_in_two_parts_and_sizes_are_as_near_as_speakers_allow(data: Any) -> None:
    speakers = data.draw(st.integers(20, 120))
    rows = corpus(speakers, data.draw(st.integers(2, 8)) * speakers, data.draw(st.integers(0, 99)))
    shares = data.draw(
        st.sampled_from([(0.8, 0.1, 0.1), (0.5, 0.5), (0.9, 0.05, 0.05), (0.4, 0.35, 0.15, 0.1)])
    )
    parts = [Part(f"p{i}", share=share) for i, share in enumerate(shares)]
    found = partition.split(rows, parts, seed=data.draw(st.integers(0, 9)))
    assert all(len(of) == 1 for of in people(rows, found).values())
    spoken = defaultdict(float)
    for row in rows:
        spoken[row.speaker] += row.duration
    total, longest = sum(spoken.values()), max(spoken.values())
    for number, share in enumerate(shares):
        assert abs(seconds(rows, found, number) - share * total) <= longest
    assert set(found.of_row.tolist()) == set(range(len(shares)))


def test_with_many_speakers_sizes_and_make_up_are_close() -> None:
    rows = corpus(400, 4_000)
    found = partition.split(rows, parse(["train=0.9", "valid=0.05", "test=0.05"]), seed=3)
    total = sum(row.duration for row in rows)
    for number, share in enumerate((0.9, 0.05, 0.05)):
        held = seconds(rows, found, number)
        assert abs(held / total - share) < 0.002
        for lang in ("de", "en", None):
            of = [r for r, p in zip(rows, found.of_row, strict=True) if p == number]
            here = sum(r.duration for r in of if r.lang == lang) / held
            there = sum(r.duration for r in rows if r.lang == lang) / total
            assert abs(here - there) < 0.03


def test_one_seed_gives_one_division_whatever_the_order_of_the_rows() -> None:
    rows = corpus(60, 600)
    parts = parse(["train=rest", "test=10%"])
    found = partition.split(rows, parts, seed=1)
    mixed = random.Random(0).sample(rows, len(rows))
    again = partition.split(mixed, parts, seed=1)
    assert people(rows, found) == people(mixed, again)
    assert people(rows, partition.split(rows, parts, seed=2)) != people(rows, found)


def test_hours_rows_and_the_rest() -> None:
    rows = corpus(300, 3_000)
    found = partition.split(rows, parse(["train=rest", "valid=30min", "test=200"]))
    mean = sum(row.duration for row in rows) / len(rows)
    assert abs(seconds(rows, found, 1) - 1800) < 20
    assert abs(seconds(rows, found, 2) - 200 * mean) < 20
    assert abs((found.of_row == 2).sum() - 200) < 15
    assert (found.of_row == 3).sum() == 0, "all rows are in a part"


def test_what_no_part_wants_is_in_none() -> None:
    rows = corpus(300, 3_000)
    found = partition.split(rows, parse(["valid=30min", "test=30min"]))
    assert abs(seconds(rows, found, 0) - 1800) < 20
    assert abs(seconds(rows, found, 1) - 1800) < 20
    assert (found.of_row == 2).sum() > 2_000


def test_rows_without_a_speaker_count_as_people_of_their_own() -> None:
    rows = corpus(5, 400)
    nobody = [Utterance(f"n{i}", f"n{i}.wav", 5.0) for i in range(300)]
    found = partition.split([*rows, *nobody], parse(["a=0.7", "b=0.3"]))
    assert found.unknown == 300
    assert all(len(of) == 1 for of in people(rows, found_of(found, 400)).values())


def found_of(found: partition.Parts, rows: int) -> partition.Parts:
    return partition.Parts(found.of_row[:rows], found.wanted, found.unknown)


def test_a_speaker_called_as_a_row_is_another(tmp_path: Any) -> None:
    rows = [Utterance("x", "x.wav", 1.0), Utterance("y", "y.wav", 1.0, speaker="x")]
    found = partition.split(rows, parse(["a=0.5", "b=0.5"]))
    assert sorted(found.of_row.tolist()) == [0, 1]


def test_a_part_that_would_be_empty_is_an_error() -> None:
    rows = [Utterance(f"u{i}", "x.wav", 5.0, speaker="one") for i in range(9)]
    with pytest.raises(DataError, match="nothing for valid: 1 speakers in 2 parts"):
        partition.split(rows, parse(["train=0.9", "valid=0.1"]))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["train"], "'train' is not a part"),
        (["a/b=0.5"], "is not a part"),
        (["..=0.5"], "is not a part"),
        (["a=-1"], "is not a part"),
        (["a=0"], "is empty"),
        (["a=1.5"], "is more than all"),
        (["a=0.6", "b=0.6"], "the shares add up to more than 1"),
        (["a=0.5", "a=0.5"], "a part stands twice"),
        (["a=rest", "b=rest"], "only one part can be the rest"),
        ([], "0 parts"),
    ],
)
def test_parts_that_make_no_sense(words: list[str], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        parse(words)


def test_amounts() -> None:
    assert parse(["a=0.5", "b=5%", "c=2h", "d=1.5min", "e=7", "f=rest"]) == [
        Part("a", share=0.5),
        Part("b", share=0.05),
        Part("c", seconds=7200),
        Part("d", seconds=90),
        Part("e", rows=7),
        Part("f"),
    ]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["a=2h"], "the parts take 2.00 h, and there are 0.01 h"),
        (["a=1.0", "b=rest"], "nothing is"),
    ],
)
def test_more_than_there_is(words: list[str], said: str) -> None:
    with pytest.raises(DataError, match=said):
        partition.split(corpus(3, 4), parse(words))
