"""Which built-in layout a folder or file has, where that can be told from its names.

Goes in: the root of a corpus. Goes out: the name of a layout. What shows none of the signs is
``folder``: bare audio. Plug-ins are not asked, for that would import them all.
"""

from __future__ import annotations

from pathlib import Path

from w2vtool.errors import DataError
from w2vtool.kinds import kind
from w2vtool.layouts.generic import TRANSCRIPTS
from w2vtool.layouts.reading import files, lines
from w2vtool.manifest import Rejected

# (layout, patterns below the folder that must all match something), most telling first
SIGNS = (
    ("tsv", (TRANSCRIPTS,)),
    ("gigaspeech", ("GigaSpeech.json",)),
    ("ljspeech", ("metadata.csv", "wavs")),
    ("commonvoice", ("validated.tsv", "clips")),
    ("mls", ("transcripts.txt", "audio/*/*/*_*_*.*")),
    ("mls", ("handles.txt",)),
    ("tedlium", ("stm/*.stm",)),
    ("tedlium", ("legacy/*/stm/*.stm",)),
    ("iemocap", ("dialog/EmoEvaluation",)),
    ("iemocap", ("Session1/dialog/EmoEvaluation",)),
    ("ami", ("segments/*.segments.xml", "words")),
    ("ami", ("*/segments/*.segments.xml", "*/words")),
    ("vctk", ("txt", "wav48*")),
    ("aishell", ("transcript/aishell_transcript_v0.8.txt",)),
    ("timit", ("[Dd][Rr][1-8]/[FM]*/SA1.*",)),
    ("timit", ("[Dd][Rr][1-8]/[fm]*/sa1.*",)),
    ("timit", ("T[ER]*/DR[1-8]/[FM]*/SA1.*",)),
    ("timit", ("t[er]*/dr[1-8]/[fm]*/sa1.*",)),
    ("ravdess", ("Actor_*/*-*-*-*-*-*-*.wav",)),
    ("voxceleb", ("wav/id1[0-9][0-9][0-9][0-9]/*/*.wav",)),
    ("voxceleb", ("id1[0-9][0-9][0-9][0-9]/*/*.wav",)),
    ("an4", ("etc/an4_train.transcription",)),
    ("fsdd", ("recordings/[0-9]_*_*.wav",)),
    ("commonlanguage", ("Basque/train", "Chinese_Taiwan/train")),
    ("librilight", ("*/*_librivox_*/*.json",)),
    ("librilight", ("*/*/*_librivox_*/*.json",)),
)
FILES = {
    "GigaSpeech.json": "gigaspeech",
    "metadata.csv": "ljspeech",
    "transcripts.txt": "mls",
    "handles.txt": "mls",
    "iden_split.txt": "voxceleb",
    "an4_train.transcription": "an4",
    "an4_test.transcription": "an4",
}


def detect(root: Path) -> str:
    """The name of the layout. DataError for a manifest, and for a pipe or a device: they have none.

    ``root`` must be there.
    """
    if root.is_file():
        return _file(root)
    if not root.is_dir():
        what = f"is {kind(root.stat().st_mode)}, neither a file nor a folder"
        hint = "write what comes out of it into a file"
        raise DataError(what, where=str(root), hint=hint)
    for name, patterns in SIGNS:
        if all(any(True for _ in root.glob(pattern)) for pattern in patterns):
            return name
    if any(path.name.endswith(".trans.txt") for path in files(root)):
        return "librispeech"
    return "folder"


def _file(path: Path) -> str:
    if path.suffix == ".jsonl":
        hint = "it can be used as it is; to make a manifest, give folders with audio"
        raise DataError("is a manifest already, not a corpus", where=str(path), hint=hint)
    if path.suffix == ".stm":
        return "tedlium"
    if path.suffix == ".tsv":
        return _table(path)
    return FILES.get(path.name, "folder")


def _table(path: Path) -> str:
    """By its first line: the names of its columns, or FLEURS' seven without names."""
    first = next(lines(path), None)
    cells = first[0].split("\t") if first and not isinstance(first, Rejected) else []
    if {"client_id", "path", "sentence"} <= set(cells):
        return "commonvoice"
    if {"id", "normalized_text", "speaker_id"} <= set(cells):
        return "voxpopuli"
    return "fleurs" if len(cells) == 7 and cells[5].isdigit() else "tsv"
