"""Read speech in one language: AISHELL-1, VCTK, LJSpeech, AN4, Free Spoken Digit Dataset.

- AISHELL-1: ``wav/{train,dev,test}/S0002/ID.wav``; all texts in
  ``transcript/aishell_transcript_v0.8.txt``, lines ``ID 词 词``.
- VCTK: ``wav48_silence_trimmed/p225/p225_001_mic1.flac`` (before 0.92 ``wav48/p225/p225_001.wav``),
  ``txt/p225/p225_001.txt``.
- LJSpeech: ``metadata.csv`` with lines ``ID|text|text with numbers as words``, ``wavs/ID.wav``.
- AN4: ``etc/an4_{train,test}.transcription`` with lines ``<s> TEXT </s> (ID)``; the audio below
  ``wav/``, as ``.sph``.
- Free Spoken Digit Dataset: ``recordings/DIGIT_SPEAKER_TAKE.wav``.
"""

from __future__ import annotations

import re
from pathlib import Path

from w2vtool.layouts.reading import (
    Misfit,
    Rows,
    above,
    choose,
    existing,
    nothing,
    pairs,
    parsed,
    recordings,
)
from w2vtool.manifest import Candidate, Rejected

DIGITS = ("ZERO", "ONE", "TWO", "THREE", "FOUR", "FIVE", "SIX", "SEVEN", "EIGHT", "NINE")
# ESPnet's split of LJSpeech, which has none of its own: the last 500, halved
LJ_HELD_OUT = 250


def aishell(root: Path) -> Rows:
    """A folder of AISHELL-1 (``wav/train``). The text is without spaces: its unit is the character.

    Some 300 recordings have no transcript, and are rejected for it.
    """
    book = above(root, "transcript/aishell_transcript_v0.8.txt")
    if book is None:
        raise nothing("no transcript/aishell_transcript_v0.8.txt here or above", root)
    texts, problems = pairs(book)
    yield from problems
    found = False
    for path in recordings(root):
        found = True
        if path.stem not in texts:
            yield Rejected(str(path), "no-transcript", f"not in {book.name}")
            continue
        text = "".join(texts[path.stem].split())
        yield Candidate(path.stem, path, text, path.parent.name, str(book), lang="zh")
    if not found:
        raise nothing("no audio in this folder", root, "unpack the archives in wav/")


def vctk(root: Path, part: str = "mic1") -> Rows:
    """All speakers, or the folder of one; ``:mic2`` takes the other microphone."""
    choose(part, ("mic1", "mic2"), root)
    found = False
    for path in recordings(root):
        stem, _, microphone = path.stem.partition("_mic")
        if microphone and f"mic{microphone}" != part:
            continue
        found = True
        speaker = path.parent.name
        book = path.parent.parent.parent / "txt" / speaker / f"{stem}.txt"
        try:
            text = book.read_text(encoding="utf-8").strip()
        except FileNotFoundError:
            yield Rejected(str(path), "no-transcript", f"no txt/{speaker}/{book.name}")
        except UnicodeDecodeError as error:
            yield Rejected(f"{book}:1", "not-utf8", f"not UTF-8 (byte {error.start + 1})")
        else:
            if text:
                yield Candidate(stem, path, text, speaker, f"{book}:1")
            else:
                yield Rejected(f"{book}:1", "no-text", "is empty")
    if not found:
        raise nothing("no audio in this folder", root)


def ljspeech(root: Path, part: str = "") -> Rows:
    """All of it, or ``:train``, ``:dev``, ``:test``: the last 500 lines are dev and test."""
    path = root / "metadata.csv" if root.is_dir() else root
    if not path.is_file():
        raise nothing("no metadata.csv in this folder", root)

    def row(line: str, where: str) -> Candidate:
        cells = line.split("|")
        text = cells[-1].strip()
        if len(cells) not in (2, 3) or not text:
            raise Misfit("bad-line", f"not 'ID|TEXT|TEXT': {line[:60]!r}")
        audio = existing(path.parent / "wavs" / f"{cells[0]}.wav", f"wavs/{cells[0]}.wav")
        # other corpora took over the format, without the reader
        return Candidate(cells[0], audio, text, "LJ" if cells[0].startswith("LJ") else None, where)

    rows = list(parsed(path, row))
    if part:
        choose(part, ("train", "dev", "test"), root)
        if len(rows) <= 2 * LJ_HELD_OUT:
            what = f"{len(rows)} lines; dev and test are the last {2 * LJ_HELD_OUT}"
            raise nothing(what, path, "is metadata.csv whole?")
        first, second = len(rows) - 2 * LJ_HELD_OUT, len(rows) - LJ_HELD_OUT
        parts = {"train": rows[:first], "dev": rows[first:second], "test": rows[second:]}
        rows = parts[part]
    yield from rows


def an4(root: Path) -> Rows:
    """A list of transcripts, ``etc/an4_train.transcription``. The speaker is in the id."""
    if root.is_dir():
        raise nothing("is a folder", root, "name etc/an4_train.transcription")
    audio = {path.stem: path for path in recordings(root.absolute().parent.parent)}

    def row(line: str, where: str) -> Candidate:
        match = re.fullmatch(r"(?:<s>)?\s*(.*?)\s*(?:</s>)?\s*\((\S+)\)\s*", line)
        if match is None or not match[1]:
            raise Misfit("bad-line", f"not '<s> TEXT </s> (ID)': {line[:60]!r}")
        text, name = match.groups()
        if name not in audio:
            hint = "; .raw has no header: take an4_sphere" if not audio else ""
            raise Misfit("missing", f"no audio file {name}.sph below {root.parent.parent}{hint}")
        return Candidate(
            name, audio[name], text, name.split("-")[1] if "-" in name else None, where
        )

    yield from parsed(root, row)


def fsdd(root: Path, part: str = "") -> Rows:
    """All recordings, or ``:test`` (takes 0 to 4) or ``:train``."""
    if part:
        choose(part, ("train", "test"), root)
    found = False
    for path in recordings(root):
        found = True
        match = re.fullmatch(r"(\d)_([^_]+)_(\d+)", path.stem)
        if match is None:
            yield Rejected(str(path), "bad-name", "not DIGIT_SPEAKER_TAKE.wav")
            continue
        digit, speaker, take = match.groups()
        if not part or part == ("test" if int(take) < 5 else "train"):
            labels = {"digit": int(digit)}
            yield Candidate(path.stem, path, DIGITS[int(digit)], speaker, str(path), extra=labels)
    if not found:
        raise nothing("no audio in this folder", root)
