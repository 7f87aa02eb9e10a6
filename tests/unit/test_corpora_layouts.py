"""Published corpora: what their look-alikes give, part by part, and what does not fit, by line."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path

import lookalikes
import pytest

from w2vtool import corpora, manifest
from w2vtool.layouts import audiobooks, meetings, segments, timit
from w2vtool.layouts.detect import detect
from w2vtool.manifest import Candidate
from w2vtool.text import Rules

GIGA = "GigaSpeech.json"
STM = "AnneSpeaker0_2010"
AMI = "ami_public_manual_1.6.2"


def rows(found: Iterable[Candidate]) -> list[tuple[object, ...]]:
    return [(item.id, item.text, item.speaker, item.lang) for item in found]


# corpus, part → (rows, first row: id, text, speaker, language)
@pytest.mark.parametrize(
    ("name", "part", "count", "first"),
    [
        ("librispeech", "dev-clean", 3, ("84-121123-0000", "GO", "84", None)),
        ("librispeech", "librispeech_finetuning/1h/0", 3, ("60-121123-0000", "ONE", "60", None)),
        ("librispeech", "librispeech_finetuning/1h", 6, ("60-121123-0000", "ONE", "60", None)),
        ("librilight", "librispeech_finetuning/9h", 3, ("62-121123-0000", "THREE", "62", None)),
        ("mls", "train", 4, ("100_7_000000", "schön", "100", "de")),
        ("mls", "dev", 4, ("110_7_000000", "schön", "110", "de")),
        ("mls", "train/limited_supervision/1hr", 2, ("100_7_000000", "schön", "100", "de")),
        ("mls", "train/limited_supervision/1hr/1", 1, ("100_7_000001", "grün weiß", "100", "de")),
        (
            "mls",
            "train/limited_supervision/9hr/handles.txt",
            1,
            ("101_7_000002", "weiß", "101", "de"),
        ),
        ("commonvoice", ".", 12, ("common_voice_de_1000", "Schön.", "client00", "de")),
        ("commonvoice", "dev.tsv", 4, ("common_voice_de_1010", "Schön.", "client10", "de")),
        (
            "voxpopuli",
            "transcribed_data/de/asr_train.tsv",
            4,
            ("20100114-0900-PLENARY-0-de_20100114-17:06:41_0", "schön", "1234", "de"),
        ),
        (
            "voxpopuli",
            "unlabelled_data/de",
            4,
            ("20190114-0900-PLENARY_de_0", None, None, "de"),
        ),
        ("fleurs", "de_de/test.tsv", 4, (f"de_de_test_{10**18}", "schön", None, "de_de")),
        ("commonlanguage", ".", 6, ("common_voice_0_1", None, "bas_dev_sp_1", "Basque")),
        (
            "commonlanguage",
            ":train",
            2,
            ("common_voice_0_0", None, "bas_train_sp_1", "Basque"),
        ),
        (
            "commonlanguage",
            "Chinese_Taiwan/test",
            1,
            ("common_voice_1_2", None, "chi_test_sp_1", "Chinese_Taiwan"),
        ),
        ("tedlium", "legacy/train", 3, (f"{STM}-0000100-0000225", "go go", STM, None)),
        ("gigaspeech", f"{GIGA}:XL", 3, ("YOU0000000000_S0000000", "TWO GO", None, None)),
        ("gigaspeech", f"{GIGA}:XS", 2, ("YOU0000000000_S0000000", "TWO GO", None, None)),
        ("gigaspeech", ":DEV", 3, ("YOU0000000001_S0000000", "TWO GO", None, None)),
        ("ami", ":train", 4, ("ES2002a.A.sync.0", "Stop T V", "FEE00", None)),
        ("ami", ":dev", 4, ("ES2011a.A.sync.0", "Stop T V", "FEE10", None)),
        ("ami", ":test", 4, ("ES2004a.A.sync.0", "Stop T V", "FEE20", None)),
        ("aishell", "wav/dev", 3, ("BAC009S0001W0000", "而对楼市", "S0001", "zh")),
        ("timit", "TRAIN", 3, ("FCJF0_SA1", "Two three", "FCJF0", None)),
        ("timit", "TRAIN:phones", 2, ("FCJF0_SI648", "_ʃɪ_dɹʌ_", "FCJF0", None)),
        ("timit", "TEST:core", 2, ("FELC0_SI648", "Stop go", "FELC0", None)),
        ("timit", "TEST:dev+phones", 2, ("FAKS0_SI648", "_ʃɪ_dɹʌ_", "FAKS0", None)),
        ("vctk", ".", 4, ("p225_001", "One.", "p225", None)),
        ("vctk", ":mic2", 4, ("p225_001", "One.", "p225", None)),
        ("vctk", "wav48_silence_trimmed/p226", 2, ("p226_001", "One.", "p226", None)),
        ("ljspeech", ":train", 3, ("LJ001-0001", "Two, go", "LJ", None)),
        ("ljspeech", "metadata.csv:dev", 250, ("LJ001-0004", "Go.", "LJ", None)),
        ("ljspeech", ":test", 250, ("LJ001-0254", "Go.", "LJ", None)),
        ("an4", "etc/an4_train.transcription", 3, ("an250-fash-b", "ONE", "fash", None)),
        ("an4", "etc/an4_test.transcription", 3, ("an260-fash-b", "ONE", "fash", None)),
        ("fsdd", "recordings:train", 6, ("0_theo_5", "ZERO", "theo", None)),
        ("fsdd", "recordings:test", 4, ("0_theo_0", "ZERO", "theo", None)),
        ("iemocap", "Session1", 3, ("Ses01F_impro01_F000", "One.", "Ses01F", None)),
        ("iemocap", ":four", 4, ("Ses01F_impro01_F000", "One.", "Ses01F", None)),
        (
            "ravdess",
            "Actor_02",
            2,
            ("03-01-06-01-02-01-02", "Dogs are sitting by the door", "Actor_02", None),
        ),
        ("voxceleb", "wav", 4, ("id10001/1zcIwhmdeo4/00000", None, "id10001", None)),
        ("voxceleb", "iden_split.txt", 4, ("id10001/1zcIwhmdeo4/00000", None, "id10001", None)),
        ("voxceleb", "iden_split.txt:dev", 1, ("id10001/1zcIwhmdeo4/00002", None, "id10001", None)),
    ],
)
def test_a_part_gives_its_rows(
    made: Callable[[str], Path], name: str, part: str, count: int, first: tuple[object, ...]
) -> None:
    found = corpora.scan(f"{made(name)}/{part}", name)
    assert (len(found.candidates), rows(found.candidates)[0]) == (count, first)
    assert len({item.id for item in found.candidates}) == count
    expected = {"ami": {"no-text"}, "gigaspeech": {"no-speech"}}.get(name, set())
    assert {item.reason for item in found.problems} <= expected


def test_libri_light_is_cut_at_pauses(made: Callable[[str], Path], tmp_path: Path) -> None:
    found = corpora.scan(made("librilight") / "small", "librilight").candidates
    assert [(item.offset, item.duration, item.speaker) for item in found] == [
        (0.2, 4.6, "100"),
        (0.2, 4.6, "103"),
    ]
    assert found[0].id == "100/sea_fairies_0812_librivox_64kb_mp3/01_baum_sea_fairies_64kb_0000"


@pytest.mark.parametrize(
    ("speech", "cut"),
    [
        ([], []),
        ([(1, 2), (3, 4)], [(1, 4)]),
        ([(0, 12), (13, 20), (20.1, 25)], [(0, 20), (20.1, 25)]),
        ([(0, 50), (51, 52)], [(0, 50), (51, 52)]),
    ],
)
def test_pieces_are_at_most_20_seconds_unless_speech_never_pauses(
    speech: list[tuple[float, float]], cut: list[tuple[float, float]]
) -> None:
    assert list(audiobooks.pieces(speech)) == cut


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        ("it 's <unk> the(2) {NOISE} best", ("it's the best", 1)),
        ("<unk> <unk>", ("", 2)),
        ("rock 'n' roll", ("rock'n' roll", 0)),
    ],
)
def test_the_text_of_an_stm_line(raw: str, text: tuple[str, int]) -> None:
    assert segments.spoken(raw) == text


def test_unclear_words_are_counted(made: Callable[[str], Path]) -> None:
    found = corpora.scan(made("tedlium") / "legacy/dev").candidates
    assert [item.extra for item in found] == [{}, {"unclear": 1}, {}]
    assert [item.text for item in found] == ["go go", "it's two", "stop"]


def test_labels_that_are_no_transcripts_go_to_extra(made: Callable[[str], Path]) -> None:
    emotions = corpora.scan(f"{made('iemocap')}/Session1").candidates
    assert [item.extra["emotion"] for item in emotions] == ["neu", "exc", "xxx"]
    assert emotions[0].extra["dominance"] == 3.0
    four = corpora.scan(f"{made('iemocap')}:four").candidates
    assert [item.extra["emotion"] for item in four] == ["neu", "hap"] * 2
    acted = corpora.scan(made("ravdess")).candidates
    assert [(item.extra["emotion"], item.extra["channel"]) for item in acted[:2]] == [
        ("fearful", "speech"),
        ("happy", "song"),
    ]
    assert corpora.scan(made("fsdd")).candidates[0].extra == {"digit": 0}


def test_timit_has_39_phones() -> None:
    assert len(timit.PHONES) == 61
    assert len(set(timit.PHONES.values()) - {""}) == 39
    assert all(len(letter) <= 1 for letter in timit.PHONES.values())
    assert (len(timit.CORE), len(timit.DEV), timit.CORE & timit.DEV) == (24, 50, frozenset())


def test_ami_has_the_partition_of_its_site() -> None:
    parts = {name: meetings.part_of(name) for name in ("IB4005", "IB4010", "EN2002c", "TS3005a")}
    assert parts == {"IB4005": "train", "IB4010": "dev", "EN2002c": "test", "TS3005a": "train"}


@pytest.mark.parametrize(
    ("name", "part"),
    [
        *((name, ".") for name in lookalikes.MAKERS if name not in ("mls", "voxpopuli", "fleurs")),
        ("mls", "train"),
        ("mls", "train/limited_supervision/9hr"),
        ("mls", "train/transcripts.txt"),
        ("commonvoice", "test.tsv"),
        ("voxpopuli", "transcribed_data/de/asr_dev.tsv"),
        ("fleurs", "de_de/dev.tsv"),
        ("tedlium", "legacy/train"),
        ("tedlium", f"legacy/train/stm/{STM}.stm"),
        ("gigaspeech", GIGA),
        ("timit", "TRAIN"),
        ("ami", AMI),
        ("iemocap", "Session1"),
        ("ljspeech", "metadata.csv"),
        ("voxceleb", "iden_split.txt"),
        ("voxceleb", "wav"),
        ("librilight", "small"),
        ("an4", "etc/an4_test.transcription"),
    ],
)
def test_auto_knows_a_corpus_by_its_names(
    made: Callable[[str], Path], name: str, part: str
) -> None:
    assert detect(made(name) / part) == name


def test_what_shows_no_sign_is_bare_audio(made: Callable[[str], Path]) -> None:
    assert detect(made("voxpopuli") / "unlabelled_data" / "de") == "folder"
    assert detect(made("fsdd") / "recordings") == "folder"


BUILT = {
    "librispeech": ["dev-clean"],
    "librilight": ["small"],
    "mls": ["train"],
    "commonvoice": ["train.tsv"],
    "voxpopuli": ["transcribed_data/de/asr_train.tsv"],
    "fleurs": ["de_de/train.tsv"],
    "tedlium": ["legacy/train"],
    "gigaspeech": [f"{GIGA}:XL"],
    "ami": [":train"],
    "timit": ["TRAIN"],
    "vctk": ["."],
    "an4": ["etc/an4_train.transcription"],
    "iemocap": ["Session1"],
}


@pytest.mark.parametrize("name", BUILT)
def test_a_manifest_holds_what_was_found_and_its_audio_can_be_read(
    made: Callable[[str], Path], name: str, tmp_path: Path
) -> None:
    roots = [f"{made(name)}/{part}" for part in BUILT[name]]
    found = corpora.collect(roots, name).candidates
    corpora.build_manifest(roots, tmp_path / "data.jsonl", layout=name, rules=Rules("keep"))
    built = manifest.read(tmp_path / "data.jsonl")
    assert [row.id for row in built.rows] == [item.id for item in found]
    for row, item in zip(built.rows, found, strict=True):
        assert (row.offset, row.lang, row.extra) == (item.offset, item.lang, item.extra)
        assert (row.text, row.speaker) == (item.text, item.speaker)
        assert len(built.audio(row)) == row.samples
        if item.duration is not None:
            assert abs(row.duration - item.duration) < 1e-3


def test_gigaspeech_is_read_in_portions(
    tmp_path: Path, made: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = corpora.scan(f"{made('gigaspeech')}:XL")
    monkeypatch.setattr(segments, "_CHUNK", 7)
    assert corpora.scan(f"{made('gigaspeech')}:XL") == whole
    facts = json.loads((made("gigaspeech") / GIGA).read_text())
    assert len(facts["audios"]) == 3


def test_the_format_of_ljspeech_may_be_another_speaker(tmp_path: Path) -> None:
    lookalikes.sound(tmp_path / "wavs" / "ann_1.wav", 1)
    lookalikes.text(tmp_path / "metadata.csv", "ann_1|Go, now.\n")
    assert rows(corpora.scan(tmp_path).candidates) == [("ann_1", "Go, now.", None, None)]


@pytest.mark.parametrize("other", ["Mine/train/a.wav", "Mine/dev/a.wav", "audio/a.wav"])
def test_folders_of_other_people_are_not_taken_for_a_published_corpus(
    tmp_path: Path, other: str
) -> None:
    lookalikes.sound(tmp_path / other, 1)
    lookalikes.text(tmp_path / "transcripts.txt", "a go\n")
    assert detect(tmp_path) == "folder"
