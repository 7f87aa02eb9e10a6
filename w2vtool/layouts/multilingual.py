"""Corpora of many languages: Common Voice, VoxPopuli, FLEURS, CommonLanguage.

- Common Voice: ``de/{validated,train,dev,test,…}.tsv`` with named columns, ``de/clips/*.mp3``.
- VoxPopuli: ``transcribed_data/de/asr_{train,dev,test}.tsv`` with named columns, the audio in
  ``YEAR/ID.ogg`` beside it; ``unlabelled_data/de/YEAR/*.ogg``.
- FLEURS: ``de_de/{train,dev,test}.tsv`` of seven columns without names, the audio in
  ``audio/SPLIT/`` or ``SPLIT/`` beside it.
- CommonLanguage: ``German/{train,dev,test}/SPEAKER/*.wav``; no text, the language is the label.
"""

from __future__ import annotations

from pathlib import Path

from w2vtool.layouts.reading import (
    Misfit,
    Rows,
    choose,
    existing,
    extra,
    is_file,
    nothing,
    parsed,
    recordings,
    table,
)
from w2vtool.manifest import Candidate

SPLITS = ("train", "dev", "test")


def commonvoice(root: Path) -> Rows:
    """A table of Common Voice, or ``validated.tsv`` of a language's folder (all three splits)."""
    path = root / "validated.tsv" if root.is_dir() else root
    if not path.is_file():
        raise nothing("no validated.tsv in this folder", root, "name a table: train.tsv")
    folder = path.parent

    def row(cells: dict[str, str], where: str) -> Candidate:
        name = cells["path"]
        name = name if "." in name else f"{name}.mp3"  # the first releases leave it out
        if not cells["sentence"].strip():
            raise Misfit("bad-line", f"no sentence for {name!r}")
        audio = existing(folder / "clips" / name, f"clips/{name}")
        speaker, lang = cells["client_id"] or None, cells.get("locale") or folder.name
        accent = cells.get("accents") or cells.get("accent")
        labels = extra(gender=cells.get("gender"), age=cells.get("age"), accent=accent)
        text = cells["sentence"]
        return Candidate(audio.stem, audio, text, speaker, where, lang=lang, extra=labels)

    yield from table(path, ("client_id", "path", "sentence"), row)


def voxpopuli(root: Path) -> Rows:
    """A table of transcribed speech, or all audio of a folder of unlabelled speech.

    The text is the normalised one, or the raw one where there is no other.
    """
    if root.is_dir():
        if any(True for depth in ("", "*/", "*/*/") for _ in root.glob(f"{depth}asr_*.tsv")):
            raise nothing("holds transcripts", root, "name a table: asr_train.tsv")
        found = False
        for path in recordings(root):
            found = True
            # unlabelled_data/de/2019/20190114-0900-PLENARY_de_3.ogg
            lang = path.parent.parent.name
            yield Candidate(path.stem, path, lang=lang)
        if not found:
            raise nothing("no audio in this folder", root)
        return
    lang = root.absolute().parent.name

    def row(cells: dict[str, str], where: str) -> Candidate:
        name = cells["id"]
        text = cells["normalized_text"].strip() or cells["raw_text"].strip()
        if not text or not name:
            raise Misfit("bad-line", f"no text for {name!r}")
        short = f"{name[:4]}/{name}.ogg"
        audio = existing(root.parent / short, short)
        speaker = cells["speaker_id"] if cells["speaker_id"] not in ("", "None") else None
        labels = extra(gender=cells.get("gender"))
        return Candidate(name, audio, text, speaker, where, lang=lang, extra=labels)

    yield from table(root, ("id", "raw_text", "normalized_text", "speaker_id"), row)


def fleurs(root: Path) -> Rows:
    """A table of FLEURS; the text is the normalised one (lower case, without punctuation)."""
    if root.is_dir():
        raise nothing("is a folder", root, "name a table: train.tsv, dev.tsv or test.tsv")
    folder, split = root.parent, root.stem
    lang = root.absolute().parent.name

    def row(line: str, where: str) -> Candidate:
        cells = line.split("\t")
        if len(cells) != 7 or not cells[3].strip():
            what = f"not 'id, file, raw text, text, letters, samples, gender': {line[:60]!r}"
            raise Misfit("bad-line", what)
        sentence, name, _, text, _, _, gender = cells
        places = (folder / "audio" / split / name, folder / split / name)
        audio = next((path for path in places if is_file(path)), None) or existing(places[0])
        labels = extra(gender=gender.lower(), sentence=sentence)
        # names are numbers that each split begins anew with
        return Candidate(
            f"{lang}_{split}_{audio.stem}", audio, text, None, where, lang=lang, extra=labels
        )

    yield from parsed(root, row)


def commonlanguage(root: Path, part: str = "") -> Rows:
    """All languages, one of them, or of either the split that ``part`` names."""
    if part:
        choose(part, SPLITS, root)
    found = False
    for path in recordings(root):
        parts = path.absolute().parts
        at = max((i for i, name in enumerate(parts[:-1]) if name in SPLITS), default=0)
        if not at or (part and parts[at] != part):
            continue
        found = True
        speaker = path.parent.name if len(parts) - at > 2 else None
        yield Candidate(path.stem, path, speaker=speaker, lang=parts[at - 1])
    if not found:
        raise nothing(f"no LANGUAGE/{part or '{train,dev,test}'}/SPEAKER/*.wav here", root)
