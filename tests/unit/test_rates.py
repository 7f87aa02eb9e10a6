"""``strict_rate``: audio at other rates is refused with all counts, and nothing is written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torture
import toys

from w2vtool import corpora, emissions, rates, splits
from w2vtool.errors import DataError
from w2vtool.schema import DataConfig


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    root = tmp_path / "corpus"
    root.mkdir()
    for number, rate in enumerate((8_000, 16_000, 44_100, 8_000)):
        (root / f"{number}.wav").write_bytes(torture.wav(rate=rate))
    return root


def test_all_rates_are_named_with_their_counts() -> None:
    with pytest.raises(DataError) as caught:
        rates.refuse_others({44_100: 1, 16_000: 5_000, 8_000: 1_200}, "here")
    assert (
        caught.value.what == "1,201 files are not at 16,000 Hz: 1,200 at 8,000 Hz, 1 at 44,100 Hz"
    )
    assert caught.value.where == "here"
    rates.refuse_others({16_000: 3}, "here")
    rates.refuse_others({}, "here")


def test_a_manifest_is_not_written(corpus: Path, tmp_path: Path) -> None:
    out = tmp_path / "a.jsonl"
    with pytest.raises(DataError, match="2 at 8,000 Hz, 1 at 44,100 Hz"):
        corpora.build_manifest([corpus], out, strict_rate=True)
    assert not out.exists()
    assert len(corpora.build_manifest([corpus], out).built.rows) == 4


def test_a_split_of_a_manifest_with_other_rates_is_refused(corpus: Path, tmp_path: Path) -> None:
    corpora.build_manifest([corpus], tmp_path / "a.jsonl")
    data = DataConfig(train=(str(tmp_path / "a.jsonl"),))
    assert len(splits.open_split(data, "train").rows) == 4
    with pytest.raises(DataError, match="3 files are not at 16,000 Hz"):
        splits.open_split(data.model_copy(update={"strict_rate": True}), "train")


def test_inputs_of_decoding_and_extraction_are_refused(corpus: Path, tmp_path: Path) -> None:
    corpora.build_manifest([corpus / "0.wav"], tmp_path / "a.jsonl")
    paths = [corpus, tmp_path / "a.jsonl"]
    with pytest.raises(DataError, match="3 at 8,000 Hz, 1 at 44,100 Hz"):
        emissions.open_inputs(paths, strict_rate=True)
    assert len(emissions.open_inputs(paths)) == 5


def test_the_flag_of_the_commands(
    w2v: Callable[..., Any], corpus: Path, tmp_path: Path, tiny_ctc: Path
) -> None:
    (corpus / "transcripts.tsv").write_text("0.wav\tup\n1.wav\tdown\n")
    done = w2v("manifest", corpus, "--out", tmp_path / "a.jsonl", "--strict-rate")
    assert done.code == 3
    assert "1 file is not at 16,000 Hz: 1 at 8,000 Hz" in done.err
    for words in (("decode",), ("extract", "--out", tmp_path / "features")):
        done = w2v(*words, "--checkpoint", tiny_ctc, "--strict-rate", corpus)
        assert done.code == 3, done.err
        assert "1 at 8,000 Hz" in done.err


def test_a_corpus_at_16_khz_passes(tmp_path: Path) -> None:
    toys.corpus(tmp_path, "train", 2)
    report = corpora.build_manifest([tmp_path / "audio"], tmp_path / "a.jsonl", strict_rate=True)
    assert len(report.built.rows) == 2
