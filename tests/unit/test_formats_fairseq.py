"""fairseq's files: what they say; what cannot be joined by line number is told with its line."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
import soundfile

from w2vtool import audio, manifest
from w2vtool.errors import ConfigError, DataError
from w2vtool.formats import convert
from w2vtool.manifest import Utterance


def split(folder: Path, **labels: str) -> Path:
    """A split of three rows, with label files."""
    rows = "a.wav\t16000\nb/c.flac\t32000\nd.wav\t8000\n"
    (folder / "train.tsv").write_text(f"/corpus\n{rows}")
    for ending, text in labels.items():
        (folder / f"train.{ending}").write_text(text)
    return folder / "train.tsv"


def read(path: Path) -> list[Utterance]:
    return list(convert.read(path, "fairseq"))


def problem(path: Path) -> str:
    with pytest.raises(DataError) as caught:
        read(path)
    return str(caught.value)


def test_rows_have_paths_for_ids_and_seconds_for_samples(tmp_path: Path) -> None:
    rows = read(split(tmp_path, ltr="A B | C |\n\nD |\n"))
    assert [row.id for row in rows] == ["a", "b/c", "d"]
    assert [row.audio for row in rows] == ["/corpus/a.wav", "/corpus/b/c.flac", "/corpus/d.wav"]
    assert [row.duration for row in rows] == [1.0, 2.0, 0.5]
    assert [row.text for row in rows] == ["AB C", None, "D"]


def test_words_are_taken_as_they_stand_and_phones_are_kept(tmp_path: Path) -> None:
    rows = read(split(tmp_path, wrd="ab  c\n\nd\n", phn="ah b\nk\n\n"))
    assert [row.text for row in rows] == ["ab  c", None, "d"]
    assert [row.extra for row in rows] == [{"phones": "ah b"}, {"phones": "k"}, {}]


@pytest.mark.parametrize(
    ("labels", "place", "lacks"),
    [
        ({"ltr": "A |\nB |\n"}, "train.tsv:4", "train.ltr"),
        ({"ltr": "A |\nB |\nC |\nD |\n"}, "train.ltr:4", "train.tsv"),
        ({"ltr": "A |\nB |\nC |\n", "wrd": "A\nB\nC\n\n"}, "train.wrd:4", "train.tsv"),
        ({"ltr": ""}, "train.tsv:2", "train.ltr"),
    ],
)
def test_another_number_of_labels_names_the_first_line_without_a_partner(
    tmp_path: Path, labels: dict[str, str], place: str, lacks: str
) -> None:
    said = problem(split(tmp_path, **labels))
    assert said.startswith(f"{tmp_path / place}: has no line of {tmp_path / lacks}")


def test_letters_that_spell_other_words_mean_that_lines_are_shifted(tmp_path: Path) -> None:
    said = problem(split(tmp_path, ltr="A |\nC |\nB |\n", wrd="A\nB\nC\n"))
    assert "train.wrd:2: the words are 'B', and .ltr in the same line spells 'C'" in said
    assert "train.wrd:3" in said and "2 problems" in said


def test_a_lost_line_is_told_with_the_place_where_the_lines_begin_to_shift(tmp_path: Path) -> None:
    said = problem(split(tmp_path, ltr="A |\nC |\n", wrd="A\nB\nC\n"))
    assert "train.tsv:4: has no line of" in said
    assert f"the first line that does not fit: {tmp_path}/train.wrd:2: the words are 'B'" in said


def test_labels_that_do_not_fit_their_audio_are_told(tmp_path: Path) -> None:
    path = split(tmp_path, wrd="A\n" + "A" * 99 + "\n" + "B" * 30 + "\n")
    done = convert.convert(path, tmp_path / "out.jsonl", origin="fairseq")
    assert done.remarks == [
        "2 texts need more frames than their audio has: are labels and rows in one order?",
        "3 rows whose audio is not here: their lengths are taken to be samples at 16 kHz",
    ]


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ("/root\na.wav\t100\tx\n", "train.tsv:2: not 'PATH<TAB>SAMPLES'"),
        ("/root\na.wav\t-5\n", "train.tsv:2: not 'PATH<TAB>SAMPLES': 'a.wav\\t-5'"),
        ("/root\na.wav\t0\n", "train.tsv:2: 'duration' is '0.0'; it must be above 0"),
        ("/root\na.wav\t9\n\n", "train.tsv:3: not 'PATH<TAB>SAMPLES': ''"),
        ("/root\na.wav\t9\na.flac\t9\n", "train.tsv:3: id 'a' is already that of"),
        ("a.wav\t100\n", "train.tsv:1: the first line is 'a.wav\\t100', not the folder"),
        ("", "train.tsv:1: the first line is '', not the folder"),
        ("/root\n", "no utterances here"),
        ("/root\n\t9\n", "train.tsv:2: audio is '', not a path"),
        ("/root\ns3://b/a.wav\t9\n", "is the URL 's3://b/a.wav'; fetch the file first"),
    ],
)
def test_a_bad_table_is_told_with_its_line(tmp_path: Path, table: str, said: str) -> None:
    (tmp_path / "train.tsv").write_text(table)
    assert said in problem(tmp_path / "train.tsv")


def test_bytes_of_a_stored_zip_are_read_as_fairseq_does(tmp_path: Path) -> None:
    """`start` and `length` find the member of a real archive that was not compressed."""
    buffer = io.BytesIO()
    tone = (0.3 * np.sin(np.arange(16_000) / 9)).astype("f4")
    soundfile.write(buffer, tone, 16_000, format="WAV", subtype="FLOAT")
    with zipfile.ZipFile(tmp_path / "x.zip", "w", zipfile.ZIP_STORED) as packed:
        packed.writestr("a.wav", buffer.getvalue())
        header = packed.getinfo("a.wav")
    start = header.header_offset + 30 + len("a.wav")
    (tmp_path / "t.tsv").write_text(f"{tmp_path}\nx.zip:{start}:{header.file_size}\t16000\n")
    (row,) = read(tmp_path / "t.tsv")
    assert (row.id, row.audio) == (f"x.zip:{start}:{header.file_size}", str(tmp_path / "x.zip"))
    assert row.start is not None and row.length is not None
    member = Path(row.audio).read_bytes()[row.start : row.start + row.length]
    (tmp_path / "member.wav").write_bytes(member)
    assert np.array_equal(audio.read(tmp_path / "member.wav"), tone)


def rows_to(folder: Path, rows: list[Utterance], name: str = "train.tsv") -> Path:
    manifest.write(folder / "in.jsonl", rows)
    convert.convert(folder / "in.jsonl", folder / name, target="fairseq", force=True)
    return folder / name


def test_what_is_written_is_what_fairseq_reads(tmp_path: Path) -> None:
    rows = [Utterance("x", "wav/1.wav", 1.0, text="BAD CAB"), Utterance("y", "2.wav", 0.5)]
    path = rows_to(tmp_path, rows)
    assert path.read_text() == f"{tmp_path}\nwav/1.wav\t16000\n2.wav\t8000\n"
    assert (tmp_path / "train.ltr").read_text() == "B A D | C A B |\n\n"
    assert (tmp_path / "train.wrd").read_text() == "BAD CAB\n\n"
    assert (tmp_path / "dict.ltr.txt").read_text() == "A 2\nB 2\n| 2\nC 1\nD 1\n"


def test_the_root_is_the_folder_that_holds_all_audio(tmp_path: Path) -> None:
    path = rows_to(tmp_path, [Utterance("x", "/a/b/1.wav", 1.0), Utterance("y", "/a/c/2.wav", 0.5)])
    assert path.read_text() == "/a\nb/1.wav\t16000\nc/2.wav\t8000\n"
    assert not (tmp_path / "train.ltr").exists() and not (tmp_path / "dict.ltr.txt").exists()


def test_a_later_split_keeps_to_the_dictionary(tmp_path: Path) -> None:
    rows_to(tmp_path, [Utterance("x", "1.wav", 1.0, text="ABBA")])
    before = (tmp_path / "dict.ltr.txt").read_text()
    rows_to(tmp_path, [Utterance("y", "2.wav", 1.0, text="BAB")], "valid.tsv")
    assert (tmp_path / "dict.ltr.txt").read_text() == before
    with pytest.raises(DataError, match="letters that are not in the dictionary: 'C'"):
        rows_to(tmp_path, [Utterance("z", "3.wav", 1.0, text="CAB")], "test.tsv")
    assert not (tmp_path / "test.tsv").exists()


def test_labels_of_an_earlier_conversion_do_not_stay_beside_new_rows(tmp_path: Path) -> None:
    rows_to(tmp_path, [Utterance("x", "1.wav", 1.0, text="A")])
    rows_to(tmp_path, [Utterance("x", "1.wav", 1.0)])
    assert not (tmp_path / "train.ltr").exists() and not (tmp_path / "train.wrd").exists()


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (Utterance("x", "1.wav", 1.0, offset=2.5), "it is a part of a file (from 2.5 s on)"),
        (Utterance("x", "1.wav", 1.0, text="A|B"), "a line break or '|' in its text, 'A|B'"),
        (Utterance("x", "1.wav", 1.0, text="A\nB"), "a line break or '|' in its text, 'A\\nB'"),
        (Utterance("x", "1.wav", 1e-5), "1e-05 s is not a single sample"),
        (Utterance("x", "1.zip:2:3", 1.0), "for bytes of an archive"),
    ],
)
def test_what_cannot_be_written_is_an_error_and_nothing_is_left(
    tmp_path: Path, row: Utterance, said: str
) -> None:
    with pytest.raises(DataError) as caught:
        rows_to(tmp_path, [Utterance("good", "0.wav", 1.0, text="A"), row])
    assert f"row 'x': {said}" in str(caught.value) or said in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["in.jsonl"]


def test_what_is_lost_is_counted(tmp_path: Path) -> None:
    rows = [Utterance("a", "1.wav", 1.0, speaker="s", extra={"mood": 1})]
    rows += [Utterance("b", "2.wav", 0.00007, sample_rate=8_000, speaker="s")]
    manifest.write(tmp_path / "in.jsonl", rows)
    done = convert.convert(tmp_path / "in.jsonl", tmp_path / "t.tsv", target="fairseq")
    lengths = "parts of a sample (lengths are whole samples)"
    assert done.lost == {"id": 2, "speaker": 2, "extra key 'mood'": 1, lengths: 1}
    assert done.remarks == [
        "1 rows are not at 16 kHz, where fairseq stops: convert their audio first",
        "2 rows whose audio is not here: whether they are whole files was not checked",
    ]


def test_a_folder_or_another_ending_is_no_split(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is a folder"):
        convert.read(tmp_path, "fairseq")
    manifest.write(tmp_path / "in.jsonl", [Utterance("a", "1.wav", 1.0)])
    with pytest.raises(ConfigError, match=r"ends in \.tsv"):
        convert.convert(tmp_path / "in.jsonl", tmp_path / "out", target="fairseq")
