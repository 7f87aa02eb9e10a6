"""What does not fit in a published corpus is told with file and line, and the rest is kept."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import lookalikes
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from w2vtool import corpora
from w2vtool.errors import ConfigError, DataError, UserError

Edit = Callable[[Path], None]
CV, VP, FL = "train.tsv", "transcribed_data/de/asr_train.tsv", "de_de/train.tsv"
NINE = "train/limited_supervision/9hr"
CHAPTER = "small/103/sea_fairies_0812_librivox_64kb_mp3/01_baum_sea_fairies_64kb.json"
TED, STM = "legacy/train", "AnneSpeaker0_2010"
TALK = f"{TED}/stm/{STM}.stm"
GIGA, SEGMENT = "GigaSpeech.json", "segment YOU0000000000_S0000000"
SPOKEN = "ami_public_manual_1.6.2/words/ES2002a.A.words.xml"
HEADSET = "amicorpus/ES2002a/audio/ES2002a.Headset"
AISHELL = "transcript/aishell_transcript_v0.8.txt"
AN4 = "etc/an4_train.transcription"
SX38 = "TRAIN/DR1/FCJF0/SX38"
EMO = "Session1/dialog/EmoEvaluation/Ses01F_impro01.txt"
SAID = "Session1/dialog/transcriptions/Ses01F_impro01.txt"
TURNS = "Session1/sentences/wav/Ses01F_impro01"
VOX, NINTH = "iden_split.txt", "03-01-09-01-02-01-01"


def change(old: str, new: str) -> Edit:
    def edit(path: Path) -> None:
        content = path.read_text(encoding="utf-8")
        assert old in content
        path.write_text(content.replace(old, new, 1), encoding="utf-8")

    return edit


def add(line: str | bytes) -> Edit:
    def edit(path: Path) -> None:
        with path.open("ab") as file:
            file.write(line if isinstance(line, bytes) else line.encode())

    return edit


def gone(path: Path) -> None:
    path.unlink()


# corpus and part → (file, what happens to it, place that is named, reason)
BAD: dict[tuple[str, str], list[tuple[str, Edit, str, str]]] = {
    ("mls", "train"): [
        ("train/transcripts.txt", add("no tab\n"), ":5", "bad-line"),
        ("train/transcripts.txt", add(b"1_7_1\t\xff\n"), ":5", "not-utf8"),
        ("train/audio/100/7/100_7_000000.flac", gone, "transcripts.txt:1", "missing"),
    ],
    ("mls", NINE): [(f"{NINE}/handles.txt", add("9_9_9\n"), "handles.txt:2", "no-transcript")],
    ("librilight", "small"): [
        (CHAPTER, gone, "64kb.json", "missing"),
        (CHAPTER, change("[0.2, 1.4]", "[1.4, 0.2]"), "64kb.json", "bad-file"),
        (CHAPTER, change('"speaker"', '"reader"'), "64kb.json", "bad-file"),
    ],
    ("commonvoice", CV): [
        (CV, add("one\tcell\n"), f"{CV}:6", "bad-line"),
        (CV, change("Schön.", " "), f"{CV}:2", "bad-line"),
        ("clips/common_voice_de_1001.mp3", gone, f"{CV}:3", "missing"),
    ],
    ("voxpopuli", VP): [
        (VP, add("x\ty\n"), "asr_train.tsv:6", "bad-line"),
        (VP, change("-0-de_", "-5-de_"), "asr_train.tsv:2", "missing"),
    ],
    ("fleurs", FL): [
        (FL, add("x\ty\n"), "train.tsv:5", "bad-line"),
        (f"de_de/audio/train/{10**18}.wav", gone, "train.tsv:1", "missing"),
    ],
    ("tedlium", TED): [
        (TALK, add("x 1 x 1.0\n"), ".stm:6", "bad-line"),
        (TALK, change("2.25", "0.25"), ".stm:3", "bad-line"),
        (TALK, change("2.25", "soon"), ".stm:3", "bad-line"),
        (TALK, change("go go", "<unk>"), ".stm:3", "no-text"),
        (f"{TED}/sph/{STM}.sph", gone, ".stm:3", "missing"),
    ],
    ("gigaspeech", f"{GIGA}:XL"): [
        (GIGA, change('"begin_time": 0.25', '"begin_time": 9'), SEGMENT, "bad-line"),
        (GIGA, change('"text_tn"', '"text"'), SEGMENT, "bad-line"),
        ("audio/youtube/P0000/YOU0000000000.opus", gone, "recording YOU0000000000", "missing"),
    ],
    ("ami", ":train"): [
        (f"{HEADSET}-0.wav", gone, "ES2002a.B.segments.xml", "missing"),
        (SPOKEN, gone, "ES2002a.A.segments.xml", "missing"),
        (SPOKEN, change("</w>", ""), "ES2002a.A.segments.xml", "bad-file"),
        (SPOKEN, change("words0", "words9"), "ES2002a.A.sync.0", "bad-line"),
    ],
    ("aishell", "wav/train"): [
        (AISHELL, change("W0000 ", "W0009 "), "BAC009S0000W0000.wav", "no-transcript"),
        (AISHELL, add("lonely\n"), "v0.8.txt:10", "bad-line"),
    ],
    ("timit", "TRAIN"): [
        (f"{SX38}.TXT", gone, "SX38.WAV", "no-transcript"),
        (f"{SX38}.TXT", change("24000", "x"), "SX38.WAV", "bad-line"),
    ],
    ("timit", "TRAIN:phones"): [(f"{SX38}.PHN", change("dcl", "xyz"), "SX38.WAV", "bad-line")],
    ("vctk", "."): [("txt/p226/p226_001.txt", gone, "p226_001_mic1.flac", "no-transcript")],
    ("ljspeech", "."): [
        ("metadata.csv", add("LJ009-0001\n"), "metadata.csv:504", "bad-line"),
        ("wavs/LJ001-0002.wav", gone, "metadata.csv:2", "missing"),
    ],
    ("an4", AN4): [
        (AN4, add("<s> X </s>\n"), "transcription:4", "bad-line"),
        ("wav/an4_clstk/fash/an250-fash-b.sph", gone, "transcription:1", "missing"),
    ],
    ("fsdd", "."): [("recordings/7_theo.wav", add("x"), "7_theo.wav", "bad-name")],
    ("iemocap", "Session1"): [
        (EMO, change("\tneu\t", " neu "), f"{EMO}:3", "bad-line"),
        (EMO, change("[2.5000, ", "["), f"{EMO}:3", "bad-line"),
        (f"{TURNS}/Ses01F_impro01_F000.wav", gone, f"{EMO}:3", "missing"),
        (SAID, change("F000 [", "F009 ["), f"{EMO}:3", "no-transcript"),
    ],
    ("ravdess", "."): [(f"Actor_01/{NINTH}.wav", add("x"), f"{NINTH}.wav", "bad-name")],
    ("voxceleb", VOX): [
        (VOX, add("4 x\n"), f"{VOX}:5", "bad-line"),
        ("wav/id10001/1zcIwhmdeo4/00000.wav", gone, f"{VOX}:1", "missing"),
    ],
}


@pytest.mark.parametrize(
    ("corpus", "file", "edit", "where", "reason"),
    [(corpus, *case) for corpus, cases in BAD.items() for case in cases],
    ids=lambda value: "-".join(value) if isinstance(value, tuple) else None,
)
def test_what_does_not_fit_is_told_with_its_place_and_the_rest_is_kept(
    made: Callable[[str], Path],
    tmp_path: Path,
    corpus: tuple[str, str],
    file: str,
    edit: Edit,
    where: str,
    reason: str,
) -> None:
    name, part = corpus
    root = shutil.copytree(made(name), tmp_path / made(name).name)
    before = corpora.scan(f"{root}/{part}", name)
    edit(root / file)
    found = corpora.scan(f"{root}/{part}", name)
    new = [item for item in found.problems if item not in before.problems]
    assert (new[0].path.endswith(where), {item.reason for item in new}) == (True, {reason})
    ids = [{item.id for item in scan.candidates} for scan in (before, found)]
    assert ids[1] <= ids[0]
    assert len(ids[0] - ids[1]) <= 3  # of one recording


@pytest.mark.parametrize(
    ("name", "part", "error", "said"),
    [
        ("mls", ".", DataError, "no transcripts.txt.*\n.*name a split: train, dev"),
        ("commonvoice", "clips", DataError, "no validated.tsv"),
        ("voxpopuli", "transcribed_data/de", DataError, "name a table: asr_train.tsv"),
        ("fleurs", "de_de", DataError, "name a table: train.tsv"),
        ("commonlanguage", ":valid", ConfigError, "no part 'valid'.*\n.*train, dev, test"),
        ("gigaspeech", GIGA, ConfigError, "no subset named.*\n.*GigaSpeech.json:XS"),
        ("gigaspeech", ":XXL", ConfigError, "no part 'XXL'"),
        ("ami", "amicorpus", DataError, "no segments"),
        ("ami", ":eval", ConfigError, "no part 'eval'"),
        ("timit", "TEST:core+words", ConfigError, "no part 'words'.*\n.*core\\+phones"),
        ("aishell", ".:train", ConfigError, "aishell has no part 'train'"),
        ("ljspeech", "wavs", DataError, "no metadata.csv"),
        ("an4", ".", DataError, "name etc/an4_train.transcription"),
        ("iemocap", ":five", ConfigError, "no part 'five'"),
        ("vctk", ":mic3", ConfigError, "no part 'mic3'"),
        ("tedlium", "legacy/train/sph", DataError, r"no \*.stm"),
        ("voxceleb", "iden_split.txt:4", ConfigError, "no part '4'"),
    ],
)
def test_a_part_that_is_none_is_an_error_that_names_the_parts(
    made: Callable[[str], Path], name: str, part: str, error: type[UserError], said: str
) -> None:
    with pytest.raises(error, match=said):
        corpora.scan(f"{made(name)}/{part}", name)


@pytest.mark.parametrize("name", lookalikes.MAKERS)
def test_an_empty_folder_is_an_error_whatever_the_corpus(name: str, tmp_path: Path) -> None:
    with pytest.raises((DataError, ConfigError)):
        corpora.scan(tmp_path, name)


def test_a_split_of_ljspeech_needs_all_of_it(tmp_path: Path) -> None:
    lookalikes.ljspeech(tmp_path, 4)
    with pytest.raises(DataError, match="4 lines; dev and test are the last 500"):
        corpora.scan(f"{tmp_path}:train")


def test_a_heading_without_the_columns_is_an_error(tmp_path: Path) -> None:
    root = lookalikes.make("commonvoice", tmp_path)
    change("sentence", "text")(root / CV)
    with pytest.raises(DataError, match=r"train.tsv:1: no column 'sentence'"):
        corpora.scan(root / CV, "commonvoice")


@pytest.mark.parametrize("cut", [20, 300, -3])
def test_a_gigaspeech_json_that_was_cut_is_an_error(
    made: Callable[[str], Path], tmp_path: Path, cut: int
) -> None:
    root = shutil.copytree(made("gigaspeech"), tmp_path / "giga")
    whole = (root / GIGA).read_bytes()
    (root / GIGA).write_bytes(whole[:cut])
    with pytest.raises(DataError, match=r"no list 'audios'|ends within a recording"):
        corpora.scan(f"{root}:XL")


TEXTS = sorted(
    {
        (*corpus, case[0])
        for corpus, cases in BAD.items()
        for case in cases
        if Path(case[0]).suffix not in (".wav", ".flac", ".mp3", ".opus", ".sph")
    }
)
PIECES = st.sampled_from(
    [b"\xff", b"\0", b"\n", b"\t", b" ", b"|", b"[", b"{", b'"', b"<", b"(", b"\xe2\x80\xae",
     b"../..", b"/etc/passwd", b"NaN", b"1e999", b"-1", "²".encode(), b"a" * 300, b"[" * 5000]
)  # fmt: skip


@pytest.mark.parametrize(("name", "part", "file"), TEXTS)
@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_whatever_a_file_holds_is_rows_or_an_error_for_people(
    made: Callable[[str], Path], name: str, part: str, file: str, data: st.DataObject
) -> None:
    """Some bytes of a file are replaced; the look-alike is as it was before."""
    path = made(name) / file
    whole = path.read_bytes()
    start = data.draw(st.integers(0, len(whole)))
    length = data.draw(st.integers(0, 40))
    inside = b"".join(data.draw(st.lists(PIECES, max_size=4)))
    path.write_bytes(whole[:start] + inside + whole[start + length :])
    try:
        for row in corpora.scan(f"{made(name)}/{part}", name).candidates:
            assert row.id and row.path.is_file()
            assert row.offset >= 0 and (row.duration is None or row.duration > 0)
    except UserError as error:
        assert "\n" not in error.what
    finally:
        path.write_bytes(whole)
