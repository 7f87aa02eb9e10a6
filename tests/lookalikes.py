"""Small look-alikes of published corpora: their folders, files and formats, with tones for speech.

``make(name, folder)`` makes one and says where.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import soundfile
import toys

WORDS = ("one", "two", "three", "stop", "go")
UMLAUTE = ("schön", "grün", "weiß", "drei", "zwei")


def sound(path: Path, seed: int, seconds: float = 1.0, rate: int = 16_000, **how: str) -> Path:
    """A recording that is unlike all others with another seed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    samples = toys.wave(seed, round(seconds * rate))
    soundfile.write(path, np.clip(samples, -1, 1), rate, **how)
    return path


def text(path: Path, content: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content, encoding="utf-8")
    return path


def say(seed: int, words: tuple[str, ...] = WORDS) -> str:
    """One or two words."""
    return " ".join(words[(seed + i) % len(words)] for i in range(1 + seed % 2))


def librispeech(root: Path) -> None:
    splits = (("train-clean-100", 19), ("dev-clean", 84), ("dev-other", 116), ("test-other", 367))
    for split, speaker in splits:
        _book(root / split, speaker)
    for part, speaker in (("1h/0/clean", 60), ("1h/1/other", 61), ("9h/clean", 62)):
        _book(root / "librispeech_finetuning" / part, speaker)


def _book(folder: Path, speaker: int, count: int = 3) -> None:
    lines = []
    for i in range(count):
        name = f"{speaker}-121123-{i:04d}"
        sound(folder / f"{speaker}/121123/{name}.flac", 100 * speaker + i, 1 + i / 5)
        lines.append(f"{name} {say(speaker + i).upper()}\n")
    text(folder / f"{speaker}/121123/{speaker}-121123.trans.txt", "".join(lines))


def librilight(root: Path) -> None:
    for speaker in ("100", "103"):
        book = root / "small" / speaker / "sea_fairies_0812_librivox_64kb_mp3"
        sound(book / "01_baum_sea_fairies_64kb.flac", int(speaker), 5)
        speech = [[0.2, 1.4], [1.6, 2.9], [3.1, 4.8]]
        facts = {"speaker": speaker, "book_meta": {"id": "1"}, "snr": 6.0, "voice_activity": speech}
        text(book / "01_baum_sea_fairies_64kb.json", json.dumps(facts))
    for part, speaker in (("1h/0/clean", 60), ("1h/1/other", 61), ("9h/clean", 62)):
        _book(root / "librispeech_finetuning" / part, speaker)
    for split in ("dev-other", "test-other", "test-clean"):
        _book(root / "LibriSpeech" / split, 500 + len(split))


def mls(root: Path) -> None:
    for number, split in enumerate(("train", "dev", "test")):
        lines = []
        for i in range(4):
            speaker, book = str(100 + 10 * number + i // 2), "7"
            name = f"{speaker}_{book}_{i:06d}"
            kind = "opus" if i == 3 else "flac"
            how = {"format": "OGG", "subtype": "OPUS"} if kind == "opus" else {}
            sound(root / split / f"audio/{speaker}/{book}/{name}.{kind}", 10 * number + i, **how)
            lines.append(f"{name}\t{say(i, UMLAUTE)}\n")
        text(root / split / "transcripts.txt", "".join(lines))
    limited = root / "train" / "limited_supervision"
    text(limited / "1hr/0/handles.txt", "100_7_000000\n")
    text(limited / "1hr/1/handles.txt", "100_7_000001\n")
    text(limited / "9hr/handles.txt", "101_7_000002\n")


def commonvoice(root: Path) -> None:
    names = ["client_id", "path", "sentence", "up_votes", "down_votes"]
    names += ["age", "gender", "accents", "locale", "segment"]
    every = []
    for number, split in enumerate(("train", "dev", "test")):
        rows = []
        for i in range(4):
            seed = 10 * number + i
            name = f"common_voice_de_{1000 + seed}.mp3"
            sound(root / "clips" / name, seed, rate=32_000, format="MP3")
            sentence = say(seed, UMLAUTE).capitalize() + ("!" if i else ".")
            cells = [f"client{number}{i // 2}", name, sentence, "2", "0", "", "male", "", "de", ""]
            rows.append("\t".join(cells) + "\n")
        every += rows
        text(root / f"{split}.tsv", "\t".join(names) + "\n" + "".join(rows))
    text(root / "validated.tsv", "\t".join(names) + "\n" + "".join(every))


def voxpopuli(root: Path) -> None:
    transcribed = root / "transcribed_data" / "de"
    names = ["id", "raw_text", "normalized_text", "speaker_id", "split", "gender"]
    for number, split in enumerate(("train", "dev", "test")):
        rows = ["\t".join(names) + "\n"]
        for i in range(4):
            name = f"201{number}0114-0900-PLENARY-{i}-de_201{number}0114-17:06:41_{i}"
            how = {"format": "OGG", "subtype": "VORBIS"}
            sound(transcribed / name[:4] / f"{name}.ogg", 50 + 10 * number + i, **how)
            words = say(i, UMLAUTE)
            cells = [name, f"{words.capitalize()}.", words, str(1234 + i // 2), split, "female"]
            rows.append("\t".join(cells) + "\n")
        text(transcribed / f"asr_{split}.tsv", "".join(rows))
    for i in range(4):
        name = f"20190114-0900-PLENARY_de_{i}.ogg"
        sound(root / "unlabelled_data/de/2019" / name, 90 + i, 3, format="OGG", subtype="VORBIS")


def fleurs(root: Path) -> None:
    for number, split in enumerate(("train", "dev", "test")):
        rows = []
        for i in range(4):
            words = say(i, UMLAUTE)
            name = f"{10**18 + i}.wav"
            sound(root / "de_de" / "audio" / split / name, 10 * number + i)
            letters = " ".join(words.replace(" ", "|")) + " |"
            cells = (str(i), name, words.capitalize() + ".", words, letters, "16000", "FEMALE")
            rows.append("\t".join(cells) + "\n")
        text(root / "de_de" / f"{split}.tsv", "".join(rows))


def commonlanguage(root: Path) -> None:
    for number, language in enumerate(("Basque", "Chinese_Taiwan")):
        for i, split in enumerate(("train", "dev", "test")):
            folder = root / language / split / f"{language[:3].lower()}_{split}_sp_1"
            sound(folder / f"common_voice_{number}_{i}.wav", 10 * number + i)


def tedlium(root: Path) -> None:
    for number, split in enumerate(("train", "dev", "test")):
        talk = f"AnneSpeaker{number}_2010"
        folder = root / "legacy" / split
        sound(folder / "sph" / f"{talk}.sph", number, 6, format="NIST")
        lines = [
            ";; a comment",
            f"{talk} 1 {talk} 0.00 0.90 <o,f0,male> ignore_time_segment_in_scoring",
            f"{talk} 1 {talk} 1.00 2.25 <o,f0,male> go go",
            f"{talk} 1 {talk} 2.50 3.75 <o,f0,male> it 's <unk> two",
            f"{talk} 1 {talk} 4.00 5.00 <o,f0,male> stop(2) {{NOISE}}",
        ]
        text(folder / "stm" / f"{talk}.stm", "\n".join(lines) + "\n")


def gigaspeech(root: Path) -> None:
    audios = []
    for number, subsets in enumerate((["{XL}", "{XS}"], ["{DEV}"], ["{TEST}"])):
        aid = f"YOU000000000{number}"
        path = f"audio/youtube/P0000/{aid}.opus"
        sound(root / path, 30 + number, 6, format="OGG", subtype="OPUS")
        texts = ("TWO <COMMA> GO <PERIOD>", "<MUSIC>", "STOP <QUESTIONMARK>", "THREE <PERIOD>")
        segments = [
            {
                "sid": f"{aid}_S000000{i}",
                "speaker": "N/A",
                "begin_time": 0.25 + 1.4 * i,
                "end_time": 1.5 + 1.4 * i,
                "text_tn": words,
                "subsets": subsets if i < 3 else subsets[:1],
            }
            for i, words in enumerate(texts)
        ]
        audio = {"title": "a, [b]", "aid": aid, "path": path, "source": "youtube"}
        audios.append({**audio, "subsets": subsets, "segments": segments})
    whole = {"dataset": "GigaSpeech", "language": "EN", "version": "v1.0.0", "audios": audios}
    text(root / "GigaSpeech.json", json.dumps(whole))


def ami(root: Path) -> None:
    public = root / "ami_public_manual_1.6.2"
    meetings = []
    for number, meeting in enumerate(("ES2002a", "ES2011a", "ES2004a")):
        speakers = []
        for channel, agent in enumerate("AB"):
            name = f"{meeting}.{agent}"
            # the channel is not that of the letter
            audio = root / "amicorpus" / meeting / "audio" / f"{meeting}.Headset-{1 - channel}.wav"
            sound(audio, 10 * number + channel, 5)
            speakers.append(
                f'<speaker nite:agent="{agent}" global_name="FEE{number}{channel}"'
                f' channel="{1 - channel}"/>'
            )
            text(public / "words" / f"{name}.words.xml", _words(name))
            text(public / "segments" / f"{name}.segments.xml", _segments(name))
        inside = "".join(speakers)
        meetings.append(f'<meeting observation="{meeting}">{inside}</meeting>')
    text(public / "corpusResources" / "meetings.xml", _xml("".join(meetings)))


def _xml(inside: str) -> str:
    head = '<?xml version="1.0" encoding="ISO-8859-1"?>'
    root = '<nite:root nite:id="x" xmlns:nite="http://nite.sourceforge.net/">'
    return f"{head}\n{root}{inside}</nite:root>\n"


def _words(name: str) -> str:
    words = [
        '<w nite:id="{0}.words0" starttime="0.5" endtime="0.9">Stop</w>',
        '<w nite:id="{0}.words1" starttime="0.9" endtime="0.9" punc="true">,</w>',
        '<vocalsound nite:id="{0}.words2" starttime="1" endtime="1.2" type="laugh"/>',
        '<w nite:id="{0}.words3" starttime="1.2" endtime="1.5">T_V_</w>',
        '<w nite:id="{0}.words4" starttime="2" endtime="2.5">go</w>',
        '<w nite:id="{0}.words5" starttime="2.5" endtime="2.9">two</w>',
        '<vocalsound nite:id="{0}.words6" starttime="3.5" endtime="4" type="cough"/>',
    ]
    return _xml("".join(words).format(name))


def _segments(name: str) -> str:
    ranges = (("0", "3", 0.4, 1.75), ("4", "5", 1.9, 3.0), ("6", "6", 3.4, 4.2))
    inside = ""
    for number, (first, last, start, end) in enumerate(ranges):
        href = f"{name}.words.xml#id({name}.words{first})"
        href += f"..id({name}.words{last})" if first != last else ""
        inside += (
            f'<segment nite:id="{name}.sync.{number}" transcriber_start="{start}"'
            f' transcriber_end="{end}"><nite:child href="{href}"/></segment>'
        )
    return _xml(inside)


def aishell(root: Path) -> None:
    lines = []
    for number, split in enumerate(("train", "dev", "test")):
        speaker = f"S000{number}"
        for i in range(3):
            name = f"BAC009{speaker}W000{i}"
            sound(root / "wav" / split / speaker / f"{name}.wav", 10 * number + i)
            lines.append(f"{name} {('而 对 楼市', '成交 抑制', '作用 最 大 的')[i]}\n")
    text(root / "transcript" / "aishell_transcript_v0.8.txt", "".join(lines))


def timit(root: Path) -> None:
    speakers = (("TRAIN/DR1/FCJF0", 1), ("TEST/DR1/FELC0", 2), ("TEST/DR1/FAKS0", 3))
    phones = ["h#", "sh", "ix", "dcl", "d", "r", "ax-h", "q", "h#"]
    for folder, seed in speakers:
        for i, sentence in enumerate(("SA1", "SI648", "SX38")):
            stem = root / folder / sentence
            sound(stem.with_suffix(".WAV"), 10 * seed + i, 1.5, format="NIST")
            words = say(seed + i).capitalize()
            text(stem.with_suffix(".TXT"), f"0 24000 {words}.\n")
            text(stem.with_suffix(".WRD"), f"1000 22000 {words.lower()}\n")
            times = (f"{2000 * k} {2000 * k + 2000} {phone}\n" for k, phone in enumerate(phones))
            text(stem.with_suffix(".PHN"), "".join(times))


def vctk(root: Path) -> None:
    for number, speaker in enumerate(("p225", "p226")):
        for i in range(2):
            for microphone in (1, 2):
                name = f"{speaker}_00{i + 1}_mic{microphone}.flac"
                seed = 100 * number + 10 * i + microphone
                sound(root / "wav48_silence_trimmed" / speaker / name, seed, rate=48_000)
            text(root / "txt" / speaker / f"{speaker}_00{i + 1}.txt", f"{say(i).capitalize()}.\n")


def ljspeech(root: Path, count: int = 503) -> None:
    """All lines that a split needs, most of them with the same sound of half a second."""
    first = sound(root / "wavs" / "LJ001-0001.wav", 1, rate=22_050)
    short = sound(root / "short.wav", 2, 0.5, 22_050).read_bytes()
    (root / "short.wav").unlink()
    lines = []
    for i in range(count):
        name = f"LJ001-{i + 1:04d}"
        if i:
            first.with_name(f"{name}.wav").write_bytes(short)
        lines.append(
            f"{name}|{'Nr. 2, go' if i == 0 else 'Go.'}|{'Two, go' if i == 0 else 'Go.'}\n"
        )
    text(root / "metadata.csv", "".join(lines))


def an4(root: Path) -> None:
    for number, (split, folder) in enumerate((("train", "an4_clstk"), ("test", "an4test_clstk"))):
        lines = []
        for i in range(3):
            speaker = ("fash", "mewl", "fcaw")[i]
            name = f"an{250 + 10 * number + i}-{speaker}-b"
            sound(root / "wav" / folder / speaker / f"{name}.sph", 10 * number + i, format="NIST")
            words = say(i).upper()
            lines.append(
                f"<s> {words} </s> ({name})\n" if split == "train" else f"{words} ({name})\n"
            )
        text(root / "etc" / f"an4_{split}.transcription", "".join(lines))


def fsdd(root: Path) -> None:
    for take in (0, 1, 5, 6, 7):
        for digit, speaker in ((7, "jackson"), (0, "theo")):
            name = f"{digit}_{speaker}_{take}.wav"
            sound(root / "recordings" / name, 10 * take + digit, 0.6, 8_000)


def iemocap(root: Path) -> None:
    for session in (1, 2):
        dialog = f"Ses0{session}F_impro01"
        base = root / f"Session{session}"
        lines, spoken = ["% [START_TIME - END_TIME] TURN_NAME EMOTION [V, A, D]\n\n"], []
        for i, (turn, emotion) in enumerate((("F000", "neu"), ("M000", "exc"), ("F001", "xxx"))):
            name = f"{dialog}_{turn}"
            sound(base / "sentences" / "wav" / dialog / f"{name}.wav", 10 * session + i)
            lines.append(
                f"[{i}.2901 - {i + 1}.2357]\t{name}\t{emotion}\t[2.5000, 2.5000, 3.0000]\n"
            )
            lines.append("C-E2:\tNeutral;\t()\nA-E3:\tval 3; act 2; dom  2;\t()\n\n")
            spoken.append(f"{name} [00{i}.2901-00{i + 1}.2357]: {say(i).capitalize()}.\n")
        text(base / "dialog" / "EmoEvaluation" / f"{dialog}.txt", "".join(lines))
        text(base / "dialog" / "EmoEvaluation" / "Categorical" / f"{dialog}_e1_cat.txt", "x\n")
        text(base / "dialog" / "transcriptions" / f"{dialog}.txt", "".join(spoken))


def ravdess(root: Path) -> None:
    for actor in (1, 2):
        for i, name in enumerate(
            (f"03-01-06-01-02-01-{actor:02d}", f"03-02-03-02-01-01-{actor:02d}")
        ):
            sound(root / f"Actor_{actor:02d}" / f"{name}.wav", 10 * actor + i, rate=48_000)


def voxceleb(root: Path) -> None:
    lines = []
    for number, split in enumerate((1, 1, 2, 3)):
        path = f"id1000{number % 2 + 1}/1zcIwhmdeo4/0000{number}.wav"
        sound(root / "wav" / path, number)
        lines.append(f"{split} {path}\n")
    text(root / "iden_split.txt", "".join(lines))


MAKERS: dict[str, Callable[[Path], None]] = {
    "librispeech": librispeech,
    "librilight": librilight,
    "mls": mls,
    "commonvoice": commonvoice,
    "voxpopuli": voxpopuli,
    "fleurs": fleurs,
    "commonlanguage": commonlanguage,
    "tedlium": tedlium,
    "gigaspeech": gigaspeech,
    "ami": ami,
    "aishell": aishell,
    "timit": timit,
    "vctk": vctk,
    "ljspeech": ljspeech,
    "an4": an4,
    "fsdd": fsdd,
    "iemocap": iemocap,
    "ravdess": ravdess,
    "voxceleb": voxceleb,
}
FOLDERS = {
    "mls": "mls_german",
    "commonvoice": "cv-corpus/de",
}  # where the name of the folder counts


def make(name: str, folder: Path) -> Path:
    """A look-alike of a corpus below a folder; its root."""
    root = folder / FOLDERS.get(name, name)
    MAKERS[name](root)
    return root
