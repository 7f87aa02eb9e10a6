"""``strict_rate``: audio at other rates is refused with all counts, and nothing is written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torture
import toys

from w2vtool import corpora, emissions, manifest, rates, splits
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


def unstated(corpus: Path, path: Path) -> Path:
    """A foreign manifest: without rates."""
    names = [f'{{"audio_filepath": "{corpus}/{n}.wav", "duration": 0.4}}' for n in range(4)]
    path.write_text("\n".join([*names, f'{{"audio": "{corpus}/gone.wav", "duration": 1}}', ""]))
    return path


@pytest.mark.parametrize("large", [False, True])
def test_files_are_asked_for_the_rates_that_a_manifest_does_not_say(
    corpus: Path, tmp_path: Path, large: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(manifest, "CACHE_BYTES", 0 if large else 1 << 30)
    path = unstated(corpus, tmp_path / "foreign.jsonl")
    data = DataConfig(train=(str(path),), strict_rate=True)
    for _ in range(2):  # the second time from columns
        with pytest.raises(DataError, match="3 files are not at 16,000 Hz: 2 at 8,000 Hz, 1 at"):
            emissions.open_inputs([path], strict_rate=True)
        with pytest.raises(DataError, match="3 files are not at 16,000 Hz"):
            splits.open_split(data, "train")
    rows = emissions.open_inputs([path])
    assert [len(source.audio(row)) for source, row in rows[:4]] == [6_400] * 4
    assert manifest.read(path).rows[0].sample_rate is None


def test_what_a_manifest_does_not_say_is_not_made_up_and_changes_no_hash(tmp_path: Path) -> None:
    said, unsaid = tmp_path / "said.jsonl", tmp_path / "unsaid.jsonl"
    said.write_text('{"id": "a", "audio": "b", "duration": 1.0, "sample_rate": 16000, "x": 1}\n')
    unsaid.write_text('{"id": "a", "audio": "b", "duration": 1.0, "x": 1}\n')
    assert manifest.read(said).sha256 == manifest.read(unsaid).sha256
    manifest.write(tmp_path / "out.jsonl", manifest.read(unsaid).rows)
    assert "sample_rate" not in (tmp_path / "out.jsonl").read_text()
    assert manifest.read(tmp_path / "out.jsonl").sha256 == manifest.read(said).sha256


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
