"""What the loop is fed: whose bins they are, and files looked at before they are needed."""

from __future__ import annotations

import shutil
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from w2vtool import headers, manifest, training
from w2vtool.batches import Batch
from w2vtool.errors import SHOWN_PROBLEMS, DataError
from w2vtool.feed import BinNumbers, Split, check_files, deal
from w2vtool.schema import LoopConfig


def no_batch(*_: Any) -> Batch:
    raise AssertionError("no batch is asked for")


def split(corpus: Path, **loop: Any) -> Split:
    found = manifest.read(corpus / "train.jsonl")
    return training.split(found, LoopConfig(bin_seconds=3, **loop), no_batch, crop=False)


@pytest.fixture
def corpus(toy_corpus: Path, tmp_path: Path) -> Path:
    shutil.copytree(toy_corpus, tmp_path / "corpus")
    return tmp_path / "corpus"


def test_processes_share_the_bins_of_every_update() -> None:
    alone = list(BinNumbers(2, 5, 4, 0, 1))
    assert alone == list(range(8, 20))
    two = [list(BinNumbers(2, 5, 4, rank, 2)) for rank in (0, 1)]
    assert sorted(two[0] + two[1]) == alone
    assert [len(BinNumbers(2, 5, 4, rank, 2)) for rank in (0, 1)] == [6, 6]
    assert len(BinNumbers(5, 5, 4, 0, 1)) == 0


def test_costs_are_dealt_out_so_that_nobody_waits_long() -> None:
    costs = np.array([9.0, 1, 1, 1, 8, 2, 2, 2])
    owner = deal(costs, 2)
    assert np.bincount(owner).tolist() == [4, 4]
    assert np.bincount(owner, costs).tolist() == [13, 13]
    assert deal(np.ones(4), 4).tolist() == [0, 1, 2, 3]


@given(
    st.integers(1, 5).flatmap(
        lambda world: st.tuples(
            st.just(world),
            st.integers(1, 6).flatmap(
                lambda rounds: st.lists(
                    st.floats(0.1, 90), min_size=world * rounds, max_size=world * rounds
                )
            ),
        )
    )
)
def test_each_process_gets_as_many_bins_and_about_as_much(
    dealt: tuple[int, list[float]],
) -> None:
    world, costs = dealt[0], np.array(dealt[1])
    owner = deal(costs, world)
    assert np.bincount(owner, minlength=world).tolist() == [len(costs) // world] * world
    load = np.bincount(owner, costs, world)
    # dealing the k-th round undoes what the ones before left, so one bin is all that is left over
    assert np.ptp(load) <= costs.max()


def test_what_a_plan_deals_out_is_every_bin_of_an_update_once(corpus: Path) -> None:
    plan = split(corpus).plan
    for world in (1, 2, 4, 8):
        mine = [list(BinNumbers(3, 6, 8, rank, world, plan)) for rank in range(world)]
        for update in range(3):
            own = slice(update * 8 // world, (update + 1) * 8 // world)
            found = [number for numbers in mine for number in numbers[own]]
            assert sorted(found) == list(range(24 + 8 * update, 32 + 8 * update))
        assert [len(BinNumbers(3, 6, 8, rank, world, plan)) for rank in range(world)] == [
            len(numbers) for numbers in mine
        ]


def test_a_split_in_which_all_is_there_is_left_alone(corpus: Path) -> None:
    check_files(split(corpus))


def test_headers_are_read_many_at_a_time(corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    both, probe = threading.Barrier(2), headers.probe

    def two_at_once(*given: Any, **more: Any) -> Any:
        both.wait(30)
        return probe(*given, **more)

    monkeypatch.setattr(headers, "probe", two_at_once)
    monkeypatch.setattr(headers, "_ROWS_A_TASK", 1)
    check_files(split(corpus))  # 12 rows


def test_every_file_that_is_not_there_is_named_in_one_error(corpus: Path) -> None:
    for number in (3, 7):
        (corpus / f"audio/train-{number}.wav").unlink()
    with pytest.raises(DataError) as caught:
        check_files(split(corpus))
    first, *lines = caught.value.what.split("\n  ")
    assert first == "2 utterances cannot be read"
    assert [line.partition(":")[0] for line in lines] == ["train-3", "train-7"]
    assert "no such file" in lines[0]
    assert caught.value.where == str(corpus / "train.jsonl")


def test_rows_that_the_plan_leaves_out_are_not_looked_at(corpus: Path) -> None:
    found = split(corpus, max_seconds=1.0)
    used = {
        row for n in range(found.plan.bins_per_epoch) for row in found.plan.bin(n).rows.tolist()
    }
    left_out = set(range(12)) - used
    assert left_out
    for row in left_out:
        (corpus / found.manifest.rows[row].audio).unlink()
    check_files(found)


def test_a_file_that_became_shorter_is_named_with_both_lengths(corpus: Path) -> None:
    found = split(corpus)
    rows = list(found.manifest.rows)
    rows[4] = replace(rows[4], offset=rows[4].duration / 2)
    with pytest.raises(
        DataError, match=r"train-4: .*wav: it has \d\.\d{3} s, the manifest wants \d\.\d{3} s"
    ):
        check_files(replace(found, manifest=replace(found.manifest, rows=rows)))


def test_a_long_list_is_cut(corpus: Path) -> None:
    found = split(corpus)
    rows = [replace(row, audio="gone.wav") for row in found.manifest.rows for _ in range(3)]
    many = replace(found.manifest, rows=rows)
    with pytest.raises(DataError, match="36 utterances cannot be read") as caught:
        check_files(training.split(many, LoopConfig(bin_seconds=3), no_batch, crop=False))
    assert caught.value.what.endswith(f"… and {36 - SHOWN_PROBLEMS} more")
