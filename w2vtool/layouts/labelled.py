"""Corpora whose labels are not transcripts: IEMOCAP, RAVDESS (emotions), VoxCeleb 1 (speakers).

- IEMOCAP: ``Session1/dialog/EmoEvaluation/DIALOG.txt`` with lines
  ``[START - END]<TAB>ID<TAB>EMOTION<TAB>[V, A, D]``, ``dialog/transcriptions/DIALOG.txt`` with
  lines ``ID [START-END]: TEXT``, the audio cut into ``sentences/wav/DIALOG/ID.wav``.
- RAVDESS: ``Actor_01/03-01-06-01-02-01-12.wav``; the seven numbers are modality, speech or song,
  emotion, intensity, statement, repetition, actor.
- VoxCeleb 1: ``wav/id10001/VIDEO/00001.wav``, and ``iden_split.txt`` with lines ``SPLIT PATH``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from w2vtool.layouts.reading import (
    Misfit,
    Rows,
    above,
    choose,
    existing,
    files,
    lines,
    nothing,
    parsed,
    recordings,
)
from w2vtool.manifest import Candidate, Rejected

# The four classes of the literature; excitement counts as happiness
FOUR = {"neu": "neu", "hap": "hap", "exc": "hap", "sad": "sad", "ang": "ang"}
EMOTIONS = ["neutral", "calm", "happy", "sad", "angry", "fearful", "disgust", "surprised"]
STATEMENTS = ("Kids are talking by the door", "Dogs are sitting by the door")
_EVALUATION = re.compile(r"\[[\d.]+ - [\d.]+\]\t(\S+)\t(\w+)\t\[([^\]]+)\]\s*")
_SPOKEN = re.compile(r"(\S+) \[[\d.]+-[\d.]+\]:\s*(.*)")
_SPLITS = {"train": "1", "dev": "2", "test": "3"}


def iemocap(root: Path, part: str = "") -> Rows:
    """The release, or a session of it. ``:four`` keeps neu, hap (with exc), sad and ang.

    ``extra`` holds ``emotion``, ``valence``, ``activation`` and ``dominance`` (1 to 5).
    """
    if part:
        choose(part, ("four",), root)
    tables = [path for path in files(root) if path.parent.name == "EmoEvaluation"]
    tables = [path for path in tables if path.suffix == ".txt"]
    if not tables:
        raise nothing("no dialog/EmoEvaluation/*.txt in this folder", root)
    for table in tables:
        yield from _dialogue(table, bool(part))


def _dialogue(table: Path, four: bool) -> Rows:
    session = table.parent.parent.parent
    texts = _transcripts(session / "dialog" / "transcriptions" / table.name)

    def row(line: str, where: str) -> Candidate | None:
        if not line.startswith("["):
            return None
        match = _EVALUATION.fullmatch(line)
        if match is None:
            what = f"not '[START - END]<TAB>ID<TAB>EMOTION<TAB>[V, A, D]': {line[:60]!r}"
            raise Misfit("bad-line", what)
        name, emotion, scale = match.groups()
        if four and emotion not in FOUR:
            return None
        dialog, _, turn = name.rpartition("_")
        audio = existing(session / "sentences" / "wav" / dialog / f"{name}.wav")
        if name not in texts:
            raise Misfit("no-transcript", f"{name} is not in dialog/transcriptions/{table.name}")
        labels = _emotions(FOUR[emotion] if four else emotion, scale)
        # Ses01F_impro01_M003: in the session Ses01, the man speaks
        return Candidate(name, audio, texts[name], name[:5] + turn[:1], where, extra=labels)

    yield from parsed(table, row)


def _emotions(emotion: str, scale: str) -> dict[str, str | float]:
    try:
        valence, activation, dominance = map(float, scale.split(","))
    except ValueError as error:
        raise Misfit("bad-line", f"not three numbers: [{scale}]") from error
    return {
        "emotion": emotion,
        "valence": valence,
        "activation": activation,
        "dominance": dominance,
    }


def _transcripts(path: Path) -> dict[str, str]:
    """Id → text of one dialogue; notes between the lines are passed over."""
    found: Iterable[tuple[str, str] | Rejected] = lines(path)
    matches = (_SPOKEN.fullmatch(item[0]) for item in found if not isinstance(item, Rejected))
    return {match[1]: match[2] for match in matches if match}


def ravdess(root: Path) -> Rows:
    """Speech and song; ``extra`` holds ``emotion``, ``intensity`` and ``channel``."""
    found = False
    for path in recordings(root):
        found = True
        codes = [int(code) for code in path.stem.split("-") if code.isdecimal()]
        if len(codes) != 7 or not (
            1 <= codes[2] <= len(EMOTIONS) and codes[1] in (1, 2) and codes[4] in (1, 2)
        ):
            yield Rejected(str(path), "bad-name", "not seven numbers such as 03-01-06-01-02-01-12")
            continue
        _, channel, emotion, intensity, statement, _, actor = codes
        labels = {
            "emotion": EMOTIONS[emotion - 1],
            "intensity": "strong" if intensity == 2 else "normal",
            "channel": "song" if channel == 2 else "speech",
            "gender": "male" if actor % 2 else "female",
        }
        text, speaker = STATEMENTS[statement - 1], f"Actor_{actor:02d}"
        yield Candidate(path.stem, path, text, speaker, str(path), extra=labels)
    if not found:
        raise nothing("no audio in this folder", root)


def voxceleb(root: Path, part: str = "") -> Rows:
    """All audio below a folder, or ``iden_split.txt:train``, ``:dev`` or ``:test`` of a list."""
    if root.is_file():
        yield from _listed(root, part)
        return
    found = False
    for path in recordings(root):
        name = "/".join(path.absolute().parts[-3:])
        if not re.match(r"id\d+/", name):
            continue
        found = True
        yield _utterance(path, str(path))
    if not found:
        raise nothing("no idNNNNN/VIDEO/*.wav in this folder", root)


def _listed(path: Path, part: str) -> Rows:
    wanted = _SPLITS[choose(part, _SPLITS, path)] if part else ""
    folder = above(path.absolute().parent, "wav") or path.parent

    def row(line: str, where: str) -> Candidate | None:
        cells = line.split()
        if len(cells) != 2 or cells[0] not in _SPLITS.values():
            raise Misfit("bad-line", f"not '1 ID/VIDEO/NUMBER.wav': {line[:60]!r}")
        if wanted and cells[0] != wanted:
            return None
        return _utterance(existing(folder / cells[1], cells[1]), where)

    yield from parsed(path, row)


def _utterance(path: Path, where: str) -> Candidate:
    speaker, video = path.absolute().parts[-3:-1]
    return Candidate(f"{speaker}/{video}/{path.stem}", path, None, speaker, where)
