"""Kaldi, NeMo, Lhotse, tables and audiofolders: files as others write them, and bad ones."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from w2vtool import manifest
from w2vtool.errors import ConfigError, DataError
from w2vtool.formats import convert
from w2vtool.formats.rows import Options
from w2vtool.manifest import Utterance


def clip(path: Path, seconds: float = 1.0, rate: int = 16_000, channels: int = 1) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(0).uniform(-0.1, 0.1, (round(seconds * rate), channels))
    soundfile.write(path, noise, rate)
    return path


def read(path: Path, kind: str, **options: Any) -> list[Utterance]:
    return list(convert.read(path, kind, Options(**options)))


def problem(path: Path, kind: str, **options: Any) -> str:
    with pytest.raises(DataError) as caught:
        read(path, kind, **options)
    return str(caught.value)


def written(folder: Path, rows: list[Utterance], kind: str, name: str, **options: Any) -> Any:
    manifest.write(folder / "in.jsonl", rows)
    more = Options(**options)
    return convert.convert(folder / "in.jsonl", folder / name, target=kind, options=more)


def refusal(folder: Path, row: Utterance, kind: str, name: str) -> str:
    with pytest.raises(DataError) as caught:
        written(folder, [row, Utterance("good", "/g.wav", 1.0, text="A")], kind, name)
    assert not (folder / name).is_file() and not list((folder / name).glob("*"))
    return str(caught.value)


# -- Kaldi ----------------------------------------------------------------------------------------


def kaldi(folder: Path, **files: str) -> Path:
    (folder / "data").mkdir()
    names = {"wav_scp": "wav.scp"}
    for name, text in files.items():
        (folder / "data" / names.get(name, name)).write_text(text)
    return folder / "data"


def test_a_kaldi_folder_with_segments(tmp_path: Path) -> None:
    path = kaldi(
        tmp_path,
        wav_scp="rec1 /a/one.wav\nrec2\t/a/with space.wav\n",
        segments="s1-u1 rec1 0.10 1.35\ns1-u2 rec1 2 3.5\ns2-u1 rec2 0.0 0.3\n",
        text="s1-u1 HELLO  THERE\ns2-u1 YES\n",
        utt2spk="s1-u1 s1\ns1-u2 s1\ns2-u1 s2\n",
        utt2lang="s2-u1 en\n",
    )
    rows = read(path, "kaldi")
    assert [(r.id, r.audio, r.offset, r.duration) for r in rows] == [
        ("s1-u1", "/a/one.wav", 0.1, 1.25),
        ("s1-u2", "/a/one.wav", 2.0, 1.5),
        ("s2-u1", "/a/with space.wav", 0.0, 0.3),
    ]
    assert [(r.text, r.speaker, r.lang) for r in rows] == [
        ("HELLO  THERE", "s1", None),
        (None, "s1", None),
        ("YES", "s2", "en"),
    ]


def test_kaldi_without_lengths_asks_the_audio(tmp_path: Path) -> None:
    clip(tmp_path / "a.wav", 1.5, 8_000)
    path = kaldi(tmp_path, wav_scp="u1 a.wav\n", utt2spk="u1 u1\n")
    (row,) = read(path, "kaldi", root=tmp_path)
    assert (row.duration, row.sample_rate, row.speaker) == (1.5, 8_000, None)
    assert "no duration is given, and a.wav no such file" in problem(path, "kaldi", root=path)
    (path / "segments").write_text("u1 u1 0.5 -1\n")  # to the end of the file
    (row,) = read(path, "kaldi", root=tmp_path)
    assert (row.offset, row.duration) == (0.5, 1.0)


@pytest.mark.parametrize(
    "line", ["cat /a.flac |", "flac -c -d -s /a.flac |", "/usr/bin/flac -dcs '/a.flac' |"]
)
def test_commands_that_only_hand_on_a_file_are_that_file(tmp_path: Path, line: str) -> None:
    path = kaldi(tmp_path, wav_scp=f"u {line}\n", utt2dur="u 1.5\n")
    (row,) = read(path, "kaldi")
    assert (row.audio, row.duration) == ("/a.flac", 1.5)


@pytest.mark.parametrize(
    "line",
    [
        "sph2pipe -f wav -p -c 1 /a.sph |",
        "sox /a.wav -t wav - speed 0.9 |",
        "touch owned; cat /a.wav |",
        "cat /a.wav | sox -t wav - -r 16000 - |",
        "cat $(touch owned) |",
        "cat -n /a.wav |",
        "flac -c -d --until=5 /a.flac |",
        "flac -t /a.flac |",
        "'unclosed |",
        "|",
    ],
)
def test_other_commands_are_refused_and_never_run(
    tmp_path: Path, line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = kaldi(tmp_path, wav_scp=f"u {line}\n", utt2dur="u 1.5\n")
    said = problem(path, "kaldi")
    assert "wav.scp:1: is a command (" in said and "wav-copy" in said
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"wav_scp": "u /a.ark:1234\n"}, "wav.scp:1: is '/a.ark:1234', not an audio file of its"),
        ({"wav_scp": "u -\n"}, "is '-', not an audio file"),
        ({"wav_scp": "u\n"}, "is '', not an audio file"),
        ({"wav_scp": "u /a\nu /b\n"}, "wav.scp:2: 'u' is already in"),
        ({"wav_scp": "u /a\n", "text": "v A\n"}, "text:1: no utterance 'v'"),
        ({"wav_scp": "u /a\n", "segments": "v w 0 1\n"}, "segments:1: no recording 'w'"),
        (
            {"wav_scp": "u /a\n", "segments": "v u 1 1\n"},
            "segments:1: 'duration' is '0.0'; it must",
        ),
        ({"wav_scp": "u /a\n", "segments": "v u 0 nan\n"}, "segments:1: 'duration' is 'nan'"),
        ({"wav_scp": "u /a\n", "segments": "v u 0\n"}, "not 'UTTERANCE RECORDING START END'"),
        ({"wav_scp": "u /a\n", "utt2dur": "u long\n"}, "its duration in utt2dur is 'long'"),
        ({"wav_scp": "", "utt2dur": ""}, "no utterances here"),
        ({"text": ""}, "no wav.scp here"),
    ],
)
def test_a_bad_kaldi_folder(tmp_path: Path, files: dict[str, str], said: str) -> None:
    files = {"utt2dur": "u 1\n", **files} if "segments" not in files else files
    assert said in problem(kaldi(tmp_path, **files), "kaldi")


def test_what_kaldi_gets_is_sorted_by_bytes_and_complete(tmp_path: Path) -> None:
    rows = [
        Utterance("b-1", "/x/b.wav", 1.0, text="B", speaker="b"),
        Utterance("a-2", "/x/a.wav", 0.5, offset=2.0, text="A", speaker="a"),
        Utterance("Z-1", "/x/a.wav", 1.25, offset=0.1, speaker="Z", lang="de"),
        Utterance("é-1", "/x/é.wav", 1e-5),
    ]
    done = written(tmp_path, rows, "kaldi", "data")
    found = {path.name: path.read_text() for path in (tmp_path / "data").iterdir()}
    assert found == {
        "wav.scp": "Z-1 /x/a.wav\nb-1 /x/b.wav\né-1 /x/é.wav\n",
        "segments": ("Z-1 Z-1 0.1 1.35\na-2 Z-1 2.0 2.5\nb-1 b-1 0.0 1.0\né-1 é-1 0.0 0.00001\n"),
        "text": "a-2 A\nb-1 B\n",
        "utt2spk": "Z-1 Z\na-2 a\nb-1 b\né-1 é-1\n",
        "spk2utt": "Z Z-1\na a-2\nb b-1\né-1 é-1\n",
        "utt2dur": "Z-1 1.25\na-2 0.5\nb-1 1.0\né-1 0.00001\n",
        "utt2lang": "Z-1 de\n",
    }
    assert not done.lost and not done.remarks


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (Utterance("a b", "/x.wav", 1.0), "the id 'a b' is empty or has spaces"),
        (Utterance("x", "/x.wav", 1.0, speaker="A. B"), "the speaker 'A. B' is empty or has"),
        (Utterance("x", "/x.wav", 1.0, text="A\nB"), "'\\n' in its text"),
        (Utterance("x", "/x:12", 1.0), "Kaldi would not take '/x:12' for a file"),
        (Utterance("x", "/rm -rf |", 1.0), "Kaldi would not take '/rm -rf |' for a file"),
        (Utterance("x", "/x.tar", 1.0, start=1, length=2), "its audio lies inside of /x.tar"),
    ],
)
def test_what_kaldi_cannot_hold_is_an_error(tmp_path: Path, row: Utterance, said: str) -> None:
    assert said in refusal(tmp_path, row, "kaldi", "data")


def test_force_replaces_the_files_of_the_format_and_no_others(tmp_path: Path) -> None:
    path = kaldi(tmp_path, wav_scp="old /old\n", segments="o old 0 1\n", notes="mine\n")
    with pytest.raises(ConfigError, match=r"there already: wav\.scp, segments"):
        written(tmp_path, [Utterance("x", "/x.wav", 1.0)], "kaldi", "data")
    assert (path / "wav.scp").read_text() == "old /old\n"
    convert.convert(tmp_path / "in.jsonl", path, target="kaldi", force=True)
    found = {file.name for file in path.iterdir()}
    assert found == {"wav.scp", "utt2spk", "spk2utt", "utt2dur", "notes"}


# -- NeMo -----------------------------------------------------------------------------------------


def test_nemo_rows_without_ids_and_with_numbers_for_speakers(tmp_path: Path) -> None:
    rows = [
        {"audio_filepath": "w/a.wav", "duration": 2, "text": "hi", "speaker": 7, "lang": "en"},
        {"audio_filepath": "w/a.wav", "duration": 1.5, "offset": 3.25, "pnc": "yes"},
        {"audio_filepath": "/abs/b.wav", "duration": 1.5, "length": 5, "audio": "z"},
    ]
    (tmp_path / "n.json").write_text("".join(json.dumps(row) + "\n" for row in rows))
    one, two, three = read(tmp_path / "n.json", "nemo")
    assert one == Utterance(
        *("w/a", str(tmp_path / "w/a.wav"), 2.0),
        sample_rate=None,
        text="hi",
        speaker="7",
        lang="en",
    )
    assert (two.id, two.offset, two.extra) == ("w/a-3.25", 3.25, {"pnc": "yes"})
    assert (three.audio, three.extra) == ("/abs/b.wav", {"custom.length": 5, "custom.audio": "z"})


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"duration": 1}', "n.json:1: audio is 'None', not a path"),
        ('{"audio_filepath": ["a", "b"], "duration": 1}', "audio_filepath is a list"),
        ('{"audio_filepath": "a"}', "missing key 'duration'"),
        ('{"audio_filepath": "a", "duration": NaN}', "NaN is not a JSON number"),
        ('{"audio_filepath": "a", "duration": "1"}', "'duration' is '1', not a number of seconds"),
        ('{"audio_filepath": "a", "duration": 1, "text": 5}', "'text' is '5', not a string"),
        ('{"audio_filepath": "a", "audio_filepath": "a"}', "key 'audio_filepath' stands twice"),
        ('{"audio_filepath": "a\\ud800", "duration": 1}', "half a surrogate pair"),
        ('{"audio_filepath": "a\\u0000", "duration": 1}', "not a path"),
        ("[]", "not a JSON object"),
        ("{", "not JSON (Expecting property name"),
    ],
)
def test_a_bad_line_of_nemo(tmp_path: Path, line: str, said: str) -> None:
    (tmp_path / "n.json").write_text(line + "\n")
    assert said in problem(tmp_path / "n.json", "nemo")


def test_all_problems_are_told_at_once_the_first_twenty_in_full(tmp_path: Path) -> None:
    (tmp_path / "n.json").write_text("{}\n" * 30)
    said = problem(tmp_path / "n.json", "nemo")
    assert "30 problems" in said and "n.json:20:" in said and "… and 10 more" in said
    assert "n.json:21:" not in said


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (b'{"audio_filepath": "\xff", "duration": 1}\n', "n.json:1: not UTF-8 (column 21, byte 0x"),
        ("{}\n".encode("utf-16"), "n.json:1: is UTF-16; convert the file to UTF-8"),
        (b"", "no utterances here"),
    ],
)
def test_bytes_that_are_no_text_are_told_with_line_and_column(
    tmp_path: Path, raw: bytes, said: str
) -> None:
    (tmp_path / "n.json").write_bytes(raw)
    assert said in problem(tmp_path / "n.json", "nemo")


def test_byte_order_marks_and_carriage_returns_are_no_content(tmp_path: Path) -> None:
    line = b'{"audio_filepath": "a.wav", "duration": 1}'
    (tmp_path / "n.json").write_bytes(b"\xef\xbb\xbf" + line + b"\r\n")
    assert [row.id for row in read(tmp_path / "n.json", "nemo")] == ["a"]


# -- Lhotse ---------------------------------------------------------------------------------------


def cut(**changes: Any) -> dict[str, Any]:
    recording = {
        "id": "r",
        "sources": [{"type": "file", "channels": [0], "source": "/a.wav"}],
        "sampling_rate": 8_000,
        "num_samples": 80_000,
        "duration": 10.0,
    }
    said = {"id": "s", "recording_id": "r", "start": 0.0, "duration": 2.5, "text": "HI"}
    said |= {"speaker": "ann", "language": "en", "gender": "F", "custom": {"snr": 3}}
    base = {"id": "c", "start": 1.5, "duration": 2.5, "channel": 0, "supervisions": [said]}
    return base | {"recording": recording, "custom": {"set": 1}, "type": "MonoCut"} | changes


def cuts(folder: Path, *found: dict[str, Any]) -> Path:
    with gzip.open(folder / "cuts.jsonl.gz", "wt") as file:
        file.writelines(json.dumps(one) + "\n" for one in found)
    return folder / "cuts.jsonl.gz"


def test_a_cut_is_a_row(tmp_path: Path) -> None:
    (row,) = read(cuts(tmp_path, cut()), "lhotse")
    assert row == Utterance(
        *("c", "/a.wav", 2.5, 1.5, 8_000, "HI", "ann", "en"),
        extra={"snr": 3, "set": 1, "gender": "F"},
    )


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"type": "MixedCut", "tracks": []}, "cut 'c': is a MixedCut; only cuts of one recording"),
        ({"supervisions": [{}, {}]}, "it has several supervisions; cuts.trim_to_supervisions()"),
        ({"recording": None}, "it has no recording"),
        ({"recording": {"sources": [{"type": "url"}]}}, "its audio is of type 'url', not a file"),
        ({"recording": {"sources": []}}, "its recording has not exactly one source"),
        ({"custom": [1]}, "it has no custom"),
        ({"duration": None}, "missing key 'duration'"),
        ({"start": -1}, "'offset' is '-1.0'; it must be at least 0"),
    ],
)
def test_a_cut_that_is_no_row(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    found = problem(cuts(tmp_path, cut(**changes)), "lhotse")
    assert "cuts.jsonl.gz:1: " in found and said in found


def test_a_gzip_file_that_was_cut_off(tmp_path: Path) -> None:
    path = cuts(tmp_path, *(cut(id=f"c{i}" * 20) for i in range(50)))
    path.write_bytes(path.read_bytes()[:-20])
    assert "is not a whole gzip file" in problem(path, "lhotse")


def test_lhotse_itself_reads_our_cuts_and_we_read_its_own(tmp_path: Path) -> None:
    pytest.importorskip("lhotse")
    from lhotse import CutSet

    clip(tmp_path / "a.wav", 3.0)
    clip(tmp_path / "b.wav", 1.0, 8_000, channels=2)
    rows = [
        Utterance("a-1", "a.wav", 1.25, offset=0.5, text="HI", speaker="s", extra={"snr": 3.5}),
        Utterance("a-2", "a.wav", 1.0, offset=2.0, lang="en"),
        Utterance("b-1", "b.wav", 1.0, sample_rate=8_000),
    ]
    done = written(tmp_path, rows, "lhotse", "cuts.jsonl.gz")
    assert len(done.remarks) == 1 and "1 rows of audio with several channels" in done.remarks[0]
    found = CutSet.from_file(tmp_path / "cuts.jsonl.gz").to_eager()
    assert [one.load_audio().shape for one in found] == [(1, 20_000), (1, 16_000), (1, 8_000)]
    assert [one.recording.duration for one in found] == [3.0, 3.0, 1.0]
    one = found["a-1"]
    assert (one.supervisions[0].text, one.supervisions[0].speaker, one.snr) == ("HI", "s", 3.5)
    found.to_file(tmp_path / "theirs.jsonl")
    convert.convert(tmp_path / "theirs.jsonl", tmp_path / "back.jsonl", origin="lhotse")
    assert manifest.read(tmp_path / "back.jsonl").rows == rows


def test_cuts_of_absent_audio_are_told(tmp_path: Path) -> None:
    done = written(tmp_path, [Utterance("a", "a.wav", 1.0)], "lhotse", "cuts.jsonl")
    assert done.remarks == [
        "1 rows whose audio is not here: their recording is taken to end where the row does"
    ]


# -- tables ---------------------------------------------------------------------------------------


def test_common_voice_is_read_with_a_column_map(tmp_path: Path) -> None:
    clip(tmp_path / "clips" / "c1.wav", 1.5, 8_000)
    heading = "client_id\tpath\tsentence\tup_votes\tlocale\n"
    table = tmp_path / "validated.tsv"
    table.write_text(heading + 'abc\tc1.wav\tHe said "no", once.\t2\tde\n')
    columns = {"audio": "path", "text": "sentence", "speaker": "client_id", "lang": "locale"}
    (row,) = read(table, "csv", columns=columns, root=tmp_path / "clips")
    assert row == Utterance(
        *("c1", str(tmp_path / "clips" / "c1.wav"), 1.5, 0.0, 8_000),
        *('He said "no", once.', "abc", "de"),
        extra={"up_votes": "2"},
    )


def test_quotes_commas_and_line_breaks_survive_in_csv(tmp_path: Path) -> None:
    text = 'a "b", c\r\nd\re\nf\t,"'
    rows = [Utterance('i,"d', "a,b.wav", 1.0, text=text, extra={"k,1": "v\n"})]
    written(tmp_path, rows, "csv", "t.csv")
    convert.convert(tmp_path / "t.csv", tmp_path / "back.jsonl", origin="csv")
    assert manifest.read(tmp_path / "back.jsonl").rows == rows


@pytest.mark.parametrize("text", ["a\tb", "a\nb", "a\rb"])
def test_a_tsv_has_no_quotes_so_tabs_and_line_breaks_are_refused(tmp_path: Path, text: str) -> None:
    row = Utterance("x", "a.wav", 1.0, text=text)
    said = refusal(tmp_path, row, "csv", "t.tsv")
    assert "row 'x': a tab or a line break in a cell" in said and "a .csv quotes them" in said


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ("audio,duration\na.wav\n", "t.csv:2: 1 cells, where the heading has 2"),
        ('audio,duration\n"a.wav,1\n', "t.csv:2: not a line of this table (unexpected end"),
        ('audio,duration\n"a"b,1\n', "t.csv:2: not a line of this table ("),
        ("audio,duration\na.wav,long\n", "t.csv:2: duration is 'long', not a number"),
        ("audio,duration\n,1\n", "t.csv:2: audio is '', not a path"),
        ("audio,audio\na,b\n", "t.csv:1: a column without a name, or two of one name"),
        ("audio,duration\na.wav,1\na.wav,1\n", "t.csv:3: id 'a' is already that of"),
        ("audio,duration\n", "no utterances here"),
        ("audio,duration\n" + "a" * 200_000 + ",1\n", "t.csv:2: not a line of this table (field"),
    ],
)
def test_a_bad_table(tmp_path: Path, table: str, said: str) -> None:
    (tmp_path / "t.csv").write_text(table)
    assert said in problem(tmp_path / "t.csv", "csv")


def test_a_column_that_is_not_there_is_told_with_those_that_are(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("path,sentence\na.wav,x\n")
    said = problem(tmp_path / "t.csv", "csv", columns={"text": "sentense"})
    assert "t.csv:1: no column 'sentense'" in said and "there are path, sentence" in said


def test_types_that_a_table_loses_are_told(tmp_path: Path) -> None:
    rows = [Utterance("x", "a.wav", 1.0, text="", extra={"n": 1, "s": "y"})]
    done = written(tmp_path, rows, "csv", "t.csv")
    assert set(done.lost) == {
        "text that is empty (it becomes none)",
        "the type of extra values (they become text)",
    }


def test_a_table_needs_an_ending_and_columns_need_one_table(tmp_path: Path) -> None:
    manifest.write(tmp_path / "in.jsonl", [Utterance("a", "1.wav", 1.0)])
    with pytest.raises(ConfigError, match=r"a table ends in \.csv or \.tsv"):
        convert.convert(tmp_path / "in.jsonl", tmp_path / "t.txt", target="csv")
    for origin, target in (("manifest", "nemo"), ("csv", "hf")):
        with pytest.raises(ConfigError, match="a column map is for one table"):
            options = Options({"audio": "path"})
            out = tmp_path / "out"
            source = tmp_path / "in.jsonl"
            convert.convert(source, out, origin=origin, target=target, options=options)


# -- audiofolder ----------------------------------------------------------------------------------


def test_an_audiofolder_with_splits(tmp_path: Path) -> None:
    for name in ("train", "test"):
        clip(tmp_path / name / "a.wav", 1.5, 8_000)
    (tmp_path / "train" / "metadata.csv").write_text("file_name,transcription\na.wav,Hi\n")
    line = {"file_name": "a.wav", "text": "Ho", "id": 5, "length": 3}
    (tmp_path / "test" / "metadata.jsonl").write_text(json.dumps(line) + "\n")
    two, one = read(tmp_path, "hf")
    assert one == Utterance(
        *("train/a", str(tmp_path / "train" / "a.wav"), 1.5, 0.0, 8_000, "Hi"),
        extra={"split": "train"},
    )
    assert (two.id, two.text, two.extra) == ("5", "Ho", {"custom.length": 3, "split": "test"})


@pytest.mark.parametrize("name", ["../a.wav", "/etc/passwd", "x/../../a.wav", "", None, 5])
def test_file_names_that_leave_the_folder_are_refused(tmp_path: Path, name: Any) -> None:
    (tmp_path / "metadata.jsonl").write_text(json.dumps({"file_name": name, "duration": 1}) + "\n")
    assert "metadata.jsonl:1: file_name is" in problem(tmp_path, "hf")


def test_a_folder_without_metadata_or_with_two(tmp_path: Path) -> None:
    assert "no metadata.jsonl or metadata.csv here" in problem(tmp_path, "hf")
    (tmp_path / "metadata.csv").write_text("file_name\n")
    (tmp_path / "metadata.jsonl").write_text("")
    assert "both metadata.csv and metadata.jsonl" in problem(tmp_path, "hf")


def test_audio_below_the_folder_is_named_and_other_audio_linked(tmp_path: Path) -> None:
    inside = clip(tmp_path / "set" / "in.wav")
    outside = clip(tmp_path / "far" / "away" / "out.wav")
    rows = [Utterance("i", str(inside), 1.0), Utterance("o", str(outside), 0.5, offset=0.25)]
    done = written(tmp_path, rows, "hf", "set")
    lines = (tmp_path / "set" / "metadata.jsonl").read_text().splitlines()
    assert [json.loads(line)["file_name"] for line in lines] == ["in.wav", "audio/out.wav"]
    assert (tmp_path / "set" / "audio" / "out.wav").read_bytes() == outside.read_bytes()
    assert len(done.remarks) == 2 and "1 rows are parts of files" in done.remarks[1]
    convert.convert(tmp_path / "in.jsonl", tmp_path / "set", target="hf", force=True)  # again
    (tmp_path / "set" / "audio" / "out.wav").unlink()
    (tmp_path / "set" / "audio" / "out.wav").write_text("mine")
    with pytest.raises(DataError, match="in the way of a link"):
        convert.convert(tmp_path / "in.jsonl", tmp_path / "set", target="hf", force=True)
    assert (tmp_path / "set" / "audio" / "out.wav").read_text() == "mine"


@pytest.mark.parametrize(
    ("kind", "name"), [("hf", "set"), ("nemo", "n.json"), ("lhotse", "c.jsonl")]
)
def test_audio_inside_of_archives_is_refused_where_only_files_are_read(
    tmp_path: Path, kind: str, name: str
) -> None:
    row = Utterance("x", "/x.tar", 1.0, start=1, length=2)
    assert "row 'x': its audio lies inside of /x.tar" in refusal(tmp_path, row, kind, name)


def test_a_row_shorter_than_its_file_stays_so_or_is_refused(tmp_path: Path) -> None:
    for name in ("a", "b"):
        soundfile.write(tmp_path / f"{name}.wav", np.zeros(8_000, np.float32), 8_000)
    rows = [
        Utterance(name, f"{name}.wav", end, 0.0, 8_000) for name, end in (("a", 1.0), ("b", 0.4))
    ]
    manifest.write(tmp_path / "in.jsonl", rows)
    with pytest.raises(
        DataError, match=r"row 'b': the first 0\.400 s of a file of 1\.000 s"
    ) as told:
        convert.convert(tmp_path / "in.jsonl", tmp_path / "train.tsv", target="fairseq")
    assert "'a'" not in str(told.value) and "cut the parts out" in told.value.hint
    assert not (tmp_path / "train.tsv").exists()
    done = convert.convert(tmp_path / "in.jsonl", tmp_path / "k", target="kaldi")
    assert (tmp_path / "k/segments").read_text() == "a a 0.0 1.0\nb b 0.0 0.4\n" and done.rows == 2
    done = convert.convert(tmp_path / "in.jsonl", tmp_path / "hf", target="hf")
    assert any(remark.startswith("1 rows are parts of files") for remark in done.remarks)


def test_lengths_of_fairseq_are_at_the_rate_of_the_file(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", np.zeros(8_000, np.float32), 8_000)
    (tmp_path / "in.tsv").write_text(f"{tmp_path}\na.wav\t8000\n")
    done = convert.convert(tmp_path / "in.tsv", tmp_path / "out.jsonl", origin="fairseq")
    [row] = manifest.read(tmp_path / "out.jsonl").rows
    assert (row.duration, row.sample_rate, done.remarks) == (1.0, 8_000, [])
    convert.convert(tmp_path / "out.jsonl", tmp_path / "again.tsv", target="fairseq")
    assert (tmp_path / "again.tsv").read_text() == (tmp_path / "in.tsv").read_text()


@pytest.mark.parametrize("kind", ["nemo", "csv", "hf", "fairseq"])
def test_a_sample_rate_that_is_not_given_is_that_of_the_file(tmp_path: Path, kind: str) -> None:
    soundfile.write(tmp_path / "a.wav", np.zeros(800, np.float32), 8_000)
    texts = {
        "nemo": ("in.jsonl", '{"audio_filepath": "a.wav", "duration": 0.1}\n'),
        "csv": ("in.csv", "audio,duration\na.wav,0.1\n"),
        "hf": ("metadata.csv", "file_name,duration\na.wav,0.1\n"),
        "fairseq": ("in.tsv", f"{tmp_path}\na.wav\t800\n"),
    }
    name, text = texts[kind]
    (tmp_path / name).write_text(text)
    source = tmp_path if kind == "hf" else tmp_path / name
    [row] = convert.read(source, kind)
    assert (row.sample_rate, row.duration) == (8_000, 0.1)
    (tmp_path / "a.wav").rename(tmp_path / "gone.wav")
    if kind != "hf":
        [row] = convert.read(source, kind)
        assert row.sample_rate is None
