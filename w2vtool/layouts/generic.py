"""Layouts for any audio: a table of transcripts, or bare files.

``tsv`` is ``transcripts.tsv`` or any other ``.tsv`` with lines ``path<TAB>text[<TAB>speaker]``
relative to its folder, with or without a heading line; ``folder`` is all audio below it, without
text. Their ids are paths.
"""

from __future__ import annotations

from pathlib import Path

from w2vtool.audio import EXTENSIONS
from w2vtool.errors import DataError
from w2vtool.layouts.reading import Misfit, Rows, existing, files, parsed
from w2vtool.manifest import Candidate, Rejected

TRANSCRIPTS = "transcripts.tsv"
FOREIGN = frozenset(  # audio that people have and libsndfile cannot read
    (".3gp", ".aac", ".amr", ".ape", ".m4a", ".mka", ".mkv", ".mov", ".mp4", ".webm", ".wma", ".wv")
)


def tsv(root: Path) -> Rows:
    """A table of transcripts. The id is the path as written, without its ending."""
    path = root / TRANSCRIPTS if root.is_dir() else root
    if not path.is_file():
        raise DataError(f"no {TRANSCRIPTS} in this folder", where=str(root))
    first = True

    def row(line: str, where: str) -> Candidate | None:
        nonlocal first
        cells = [cell.strip() for cell in line.split("\t")]
        heading, first = first and cells[0].lower() in ("path", "audio", "file"), False
        if heading:
            return None
        if len(cells) not in (2, 3) or not cells[0] or not cells[1]:
            what = f"not 'path<TAB>text[<TAB>speaker]': {len(cells)} columns, {line[:60]!r}"
            raise Misfit("bad-line", what)
        audio = existing(path.parent / cells[0], cells[0])
        speaker = cells[2] if len(cells) == 3 and cells[2] else None
        return Candidate(_id(Path(cells[0])), audio, cells[1], speaker, where)

    yield from parsed(path, row)


def folder(root: Path) -> Rows:
    """Bare audio. The id is the path below ``root`` without its ending."""
    base = root.parent if root.is_file() else root
    found = False
    for path in files(root):
        kind = path.suffix.lower()
        if kind in EXTENSIONS or path == root:
            found = True
            yield Candidate(_id(path.relative_to(base)), path)
        elif kind in FOREIGN:
            found = True
            what = f"{kind} audio cannot be read; convert it to FLAC"
            yield Rejected(str(path), "wrong-extension", what)
    if not found:
        known = " ".join(sorted(EXTENSIONS))
        raise DataError("no audio in this folder", where=str(root), hint=f"looked for {known}")


def _id(path: Path) -> str:
    return path.with_suffix("").as_posix()
