"""Corpora on disk to manifests: which files are audio, and which transcript belongs to which.

Goes in: folders in a known layout. Goes out: ``Candidate`` rows and, with ``file:line``, whatever
does not fit together; and through ``build_manifest`` a written manifest with a ``Report``.

Layouts: ``librispeech`` (``*.trans.txt`` of ``ID TEXT`` lines beside ``ID.flac``, the speaker being
the id up to the first ``-``), ``tsv`` (``transcripts.tsv`` or any other ``.tsv``, lines
``path<TAB>text[<TAB>speaker]`` relative to its folder, with or without a heading line), ``folder``
(all audio below it, without text). Files and folders whose name begins with a dot are no part of
a corpus (``.ipynb_checkpoints``, ``._`` files of macOS).
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Literal, NamedTuple

from w2vtool.audio import EXTENSIONS
from w2vtool.errors import DataError
from w2vtool.manifest import (
    SHOWN_PROBLEMS,
    Built,
    Candidate,
    Rejected,
    Utterance,
    build,
    write,
    write_lines,
)
from w2vtool.text import Case, Punctuation, normalize

Layout = Literal["auto", "librispeech", "tsv", "folder"]
TRANSCRIPTS = "transcripts.tsv"
FOREIGN = frozenset(  # audio that people have and libsndfile cannot read
    (".3gp", ".aac", ".amr", ".ape", ".m4a", ".mka", ".mkv", ".mov", ".mp4", ".webm", ".wma", ".wv")
)


class Scan(NamedTuple):
    """Candidates in a stable order, and what does not fit together."""

    candidates: list[Candidate]
    problems: list[Rejected]


def scan(root: str | Path, layout: Layout = "auto") -> Scan:
    """Find the utterances of one corpus. DataError when there is no such corpus at ``root``."""
    root = Path(root)
    if not root.exists():
        raise DataError("no such file or folder", where=str(root))
    if layout == "auto":
        layout = _detect(root)
    if layout not in LAYOUTS:
        known = ", ".join(("auto", *LAYOUTS))
        raise DataError(f"unknown corpus layout {layout!r}", hint=f"one of {known}")
    return LAYOUTS[layout](root)


def _detect(root: Path) -> Layout:
    if root.suffix == ".jsonl" and root.is_file():
        hint = "it can be used as it is; to make a manifest, give folders with audio"
        raise DataError("is a manifest already, not a corpus", where=str(root), hint=hint)
    if root.suffix == ".tsv" or (root / TRANSCRIPTS).is_file():
        return "tsv"
    if any(path.name.endswith(".trans.txt") for path in _files(root)):
        return "librispeech"
    return "folder"


def _files(root: Path) -> Iterator[Path]:
    """All files below a folder in a stable order, through links, but never in circles."""
    if root.is_file():
        yield root
        return
    seen = set()
    for folder, folders, files in os.walk(root, onerror=_unreadable, followlinks=True):
        status = Path(folder).stat()
        if (status.st_dev, status.st_ino) in seen:
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(folder, name) for name in sorted(files) if not name.startswith("."))


def _unreadable(error: OSError) -> None:
    raise DataError(f"folder cannot be read ({error.strerror})", where=str(error.filename))


def _scan_folder(root: Path) -> Scan:
    """Bare audio. The id is the path below ``root`` without its ending."""
    candidates, problems = [], []
    base = root.parent if root.is_file() else root
    for path in _files(root):
        kind = path.suffix.lower()
        if kind in EXTENSIONS or path == root:
            candidates.append(Candidate(_id(path.relative_to(base)), path))
        elif kind in FOREIGN:
            what = f"{kind} audio cannot be read; convert it to FLAC"
            problems.append(Rejected(str(path), "wrong-extension", what))
    if not candidates and not problems:
        known = " ".join(sorted(EXTENSIONS))
        raise DataError("no audio in this folder", where=str(root), hint=f"looked for {known}")
    return Scan(candidates, problems)


def _scan_librispeech(root: Path) -> Scan:
    """LibriSpeech's own folders, at any depth."""
    candidates, problems = [], []
    files = list(_files(root))
    audio = dict.fromkeys(path for path in files if path.suffix.lower() in EXTENSIONS)
    beside = {(path.parent, path.stem): path for path in reversed(audio)}
    books = [path for path in files if path.name.endswith(".trans.txt")]
    if not books:
        raise DataError("no *.trans.txt in this folder", where=str(root), hint="try --corpus auto")
    for book in books:
        lines, bad = _lines(book)
        problems += bad
        for where, line in lines:
            utterance, _, text = line.strip().partition(" ")
            path = beside.get((book.parent, utterance))
            audio.pop(path or book, None)
            if not text.strip():
                problems.append(Rejected(where, "bad-line", f"not 'ID TEXT': {line[:60]!r}"))
            elif path is None:
                what = f"no audio file {utterance}.flac (or other ending) beside it"
                problems.append(Rejected(where, "missing", what))
            else:
                speaker = utterance.split("-")[0]
                candidates.append(Candidate(utterance, path, text, speaker, where))
    problems += [Rejected(str(path), "no-transcript", "in no *.trans.txt") for path in audio]
    return Scan(candidates, problems)


def _scan_tsv(root: Path) -> Scan:
    """A table of transcripts. The id is the path as written, without its ending."""
    table = root / TRANSCRIPTS if root.is_dir() else root
    if not table.is_file():
        raise DataError(f"no {TRANSCRIPTS} in this folder", where=str(root))
    candidates = []
    lines, problems = _lines(table)
    for index, (where, line) in enumerate(lines):
        cells = [cell.strip() for cell in line.split("\t")]
        if index == 0 and cells[0].lower() in ("path", "audio", "file"):
            continue
        if len(cells) not in (2, 3) or not cells[0] or not cells[1]:
            what = f"not 'path<TAB>text[<TAB>speaker]': {len(cells)} columns, {line[:60]!r}"
            problems.append(Rejected(where, "bad-line", what))
            continue
        path = table.parent / cells[0]
        if not _is_file(path):
            problems.append(Rejected(where, "missing", f"no audio file {cells[0]}"))
            continue
        speaker = cells[2] if len(cells) == 3 and cells[2] else None
        candidates.append(Candidate(_id(Path(cells[0])), path, cells[1], speaker, where))
    return Scan(candidates, problems)


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a name that cannot be one: a sentence, a NUL
        return False


LAYOUTS: dict[str, Callable[[Path], Scan]] = {
    "librispeech": _scan_librispeech,
    "tsv": _scan_tsv,
    "folder": _scan_folder,
}


def _id(path: Path) -> str:
    return path.with_suffix("").as_posix()


def _lines(path: Path) -> tuple[list[tuple[str, str]], list[Rejected]]:
    """Lines that hold something, each with its ``file:line``; lines that are not UTF-8 apart."""
    try:
        data = path.read_bytes().removeprefix(b"\xef\xbb\xbf")
    except OSError as error:
        return [], [Rejected(str(path), "unreadable", f"cannot be read ({error.strerror})")]
    lines, problems = [], []
    for number, line in enumerate(data.split(b"\n"), start=1):
        where = f"{path}:{number}"
        try:
            text = line.decode("utf-8").rstrip("\r")
        except UnicodeDecodeError as error:
            what = f"not UTF-8 (byte {error.start + 1} of the line)"
            problems.append(Rejected(where, "not-utf8", what))
            continue
        if text.strip():
            lines.append((where, text))
    return lines, problems


@dataclass(frozen=True)
class Report:
    """A manifest that was written, and all that a person should be told about it."""

    path: Path
    built: Built  # its rows are as written, its rejects those of the scan and of the decoding
    rejects_path: Path | None

    @property
    def seconds(self) -> float:
        """Audio in the manifest."""
        return sum(row.duration for row in self.built.rows)

    @cached_property
    def speakers(self) -> Counter[str]:
        """Utterances of each known speaker."""
        return Counter(row.speaker for row in self.built.rows if row.speaker)

    @cached_property
    def letters(self) -> Counter[str]:
        """Letters of all texts, without spaces."""
        texts = (row.text for row in self.built.rows if row.text)
        return Counter(letter for text in texts for word in text.split() for letter in word)


def collect(roots: Sequence[str | Path], layout: Layout = "auto") -> Scan:
    """Scan several corpora into one.

    With more than one root, ids of the layouts without ids of their own begin with the root's name,
    so that ``train/001.wav`` and ``test/001.wav`` stay apart.
    """
    if not roots:
        raise DataError("no corpus given", hint="name folders with audio")
    candidates, problems = [], []
    for root in map(Path, roots):
        kind = _detect(root) if layout == "auto" and root.exists() else layout
        found = scan(root, kind)
        own_ids = kind == "librispeech" or len(roots) == 1
        prefix = "" if own_ids else f"{root.absolute().name.removesuffix(root.suffix)}/"
        candidates += [item._replace(id=prefix + item.id) for item in found.candidates]
        problems += found.problems
    return Scan(candidates, problems)


def build_manifest(
    roots: Sequence[str | Path],
    out: str | Path,
    *,
    layout: Layout = "auto",
    jobs: int = 1,
    case: Case = "upper",
    punctuation: Punctuation = "keep",
    strict: bool = False,
    on_progress: Callable[[int, int], None] | None = None,
) -> Report:
    """Scan corpora, decode every file, write the manifest, and list what was rejected beside it.

    Rejects go to ``<out>.rejected.jsonl``. Audio below the manifest's folder is written as a
    relative path, so the folder can be moved; other audio as an absolute one. DataError when
    nothing is left, or with ``strict`` when anything was rejected: then no manifest is written.
    """
    out = Path(out)
    if out.suffix != ".jsonl" or out.is_dir():
        raise DataError("a manifest must be a .jsonl file", where=str(out))  # never a transcript
    found = collect(roots, layout)
    candidates, problems = _with_text(found.candidates, case, punctuation)
    built = build(candidates, jobs=jobs, on_progress=on_progress)
    built.rejected = [*found.problems, *problems, *built.rejected]
    rejects_path = _write_rejects(out, built.rejected)
    if not built.rows or (strict and built.rejected):
        raise _failure(roots, built, rejects_path)
    folder = out.absolute().parent
    built.rows = [replace(row, audio=_locate(row, folder)) for row in built.rows]
    write(out, built.rows)
    return Report(out, built, rejects_path)


def _with_text(
    candidates: Iterable[Candidate], case: Case, punctuation: Punctuation
) -> tuple[list[Candidate], list[Rejected]]:
    kept, problems = [], []
    for candidate in candidates:
        if candidate.text is None:
            kept.append(candidate)
        elif text := normalize(candidate.text, case, punctuation=punctuation):
            kept.append(candidate._replace(text=text))
        else:
            problems.append(Rejected(candidate.where, "no-text", "nothing left of its text"))
    return kept, problems


def _locate(row: Utterance, folder: Path) -> str:
    path = Path(row.audio).absolute()
    return path.relative_to(folder).as_posix() if path.is_relative_to(folder) else str(path)


def _write_rejects(out: Path, rejected: Sequence[Rejected]) -> Path | None:
    path = out.with_name(f"{out.name}.rejected.jsonl")
    if not rejected:
        path.unlink(missing_ok=True)  # of an earlier, worse attempt
        return None
    write_lines(path, (json.dumps(item._asdict()) for item in rejected))
    return path


def _failure(roots: Sequence[str | Path], built: Built, rejects_path: Path | None) -> DataError:
    where = ", ".join(map(str, roots))
    if not built.rejected:
        return DataError("no utterances here", where=where, hint="is it the right folder?")
    shown = [f"{item.path}: {item.detail} [{item.reason}]" for item in built.rejected]
    rest = len(shown) - SHOWN_PROBLEMS
    lines = [*shown[:SHOWN_PROBLEMS], *([f"… and {rest} more"] if rest > 0 else [])]
    total = len(built.rejected) + len(built.rows)
    head = f"{len(shown)} of {total} rejected" if built.rows else f"all {total} rejected"
    return DataError("\n  ".join([head, *lines]), where=where, hint=f"all are in {rejects_path}")
