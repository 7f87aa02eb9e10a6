"""Corpora on disk to manifests: which files are audio, and which transcript belongs to which.

Goes in: folders in a known layout (``layouts/table.py`` lists them), or ``FOLDER:PART``. Goes out:
``Candidate`` rows and, with ``file:line``, whatever does not fit together; and through
``build_manifest`` a written manifest with a ``Report``.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal, NamedTuple

from w2vtool import kinds
from w2vtool.errors import DataError, shortened
from w2vtool.formats.rows import moved
from w2vtool.layouts import table
from w2vtool.layouts.detect import detect
from w2vtool.manifest import (
    Built,
    Candidate,
    Rejected,
    build,
    write,
    write_list,
)
from w2vtool.rates import refuse_others
from w2vtool.survey_parts import Verify
from w2vtool.text import DEFAULT_RULES, OddityReport, Rules


class Scan(NamedTuple):
    """Candidates in a stable order, and what does not fit together."""

    candidates: list[Candidate]
    problems: list[Rejected]


def scan(root: str | Path, layout: str = table.AUTO) -> Scan:
    """Find the utterances of one corpus, or of ``ROOT:PART``.

    DataError when there is no such corpus at ``root``; ConfigError for an unknown layout or part.
    """
    path, part = table.split(root)
    ref = table.find(_layout(path, layout))
    if not path.exists():
        raise DataError("no such file or folder", where=str(path))
    candidates: list[Candidate] = []
    problems: list[Rejected] = []
    for row in ref.rows(path, part):
        if isinstance(row, Rejected):
            problems.append(row)
        else:
            candidates.append(row)
    return Scan(candidates, problems)


def _layout(root: Path, layout: str) -> str:
    """The layout by name: what ``auto`` finds, for a root that is there."""
    if layout != table.AUTO:
        return layout
    return detect(root) if root.exists() else "folder"


@dataclass(frozen=True)
class Report:
    """A manifest that was written, and all that a person should be told about it."""

    path: Path
    built: Built  # its rows are as written, its rejects those of the scan and of the decoding
    rejects_path: Path | None
    odd: tuple[str, ...] = ()  # characters that nobody sees, and what became of them

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


def collect(roots: Sequence[str | Path], layout: str = table.AUTO) -> Scan:
    """Scan several corpora into one.

    With more than one root, ids of the layouts without ids of their own begin with the root's name,
    so that ``train/001.wav`` and ``test/001.wav`` stay apart.
    """
    if not roots:
        raise DataError("no corpus given", hint="name folders with audio")
    candidates: list[Candidate] = []
    problems: list[Rejected] = []
    for root in roots:
        path, _ = table.split(root)
        kind = _layout(path, layout)
        found = scan(root, kind)
        shared = kind in table.PATH_IDS and len(roots) > 1
        prefix = f"{path.absolute().name.removesuffix(path.suffix)}/" if shared else ""
        candidates += [item._replace(id=prefix + item.id) for item in found.candidates]
        problems += found.problems
    return Scan(candidates, problems)


def build_manifest(
    roots: Sequence[str | Path],
    out: str | Path,
    *,
    layout: str = table.AUTO,
    jobs: int = 0,
    rules: Rules = DEFAULT_RULES,
    strict: bool = False,
    verify: Verify = "decode",
    engine: Literal["local", "ray"] = "local",
    strict_rate: bool = False,
    on_progress: Callable[[int, int], None] | None = None,
) -> Report:
    """Scan corpora, decode every file, write the manifest, and list what was rejected beside it.

    What was found of the files is kept in ``.<out>.parts``: a second run decodes what is new or
    changed. With ``verify="header"`` only headers are read. Rejects go to ``<out>.rejected.jsonl``.
    Texts are spelled by ``rules``; the characters that nobody sees are named in the report.
    Audio below the manifest's folder is written as a relative path, so the folder can be moved;
    other audio as an absolute one. DataError when nothing is left, with ``strict`` when anything
    was rejected, with ``strict_rate`` when audio is not at 16 kHz: then no manifest is written.
    """
    out = Path(out)
    if problem := kinds.no_manifest(out):
        raise DataError(problem, where=str(out))  # never a transcript
    found = collect(roots, layout)
    _try_writing(out)
    odd = OddityReport()
    candidates, problems = _with_text(found.candidates, rules, odd)
    keep = out.with_name(f".{out.name}.parts")
    built = build(
        candidates, jobs=jobs, verify=verify, keep=keep, engine=engine, on_progress=on_progress
    )
    built.rejected = [*found.problems, *problems, *built.rejected]
    rejects_path = write_list(
        out.with_name(f"{out.name}.rejected.jsonl"), (item._asdict() for item in built.rejected)
    )
    if not built.rows or (strict and built.rejected):
        raise _failure(roots, built, rejects_path)
    if strict_rate:
        refuse_others(built.resampled, ", ".join(map(str, roots)))
    folder = out.absolute().parent
    built.rows = [moved(row, Path(), folder) for row in built.rows]
    write(out, built.rows)
    return Report(out, built, rejects_path, tuple(odd.lines()))


def _try_writing(out: Path) -> None:
    """Raise DataError where a manifest could not be written: not after hours of decoding."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out.parent):
            pass
    except OSError as error:
        raise DataError(f"cannot be written ({error.strerror})", where=str(out)) from error


def _with_text(
    candidates: Iterable[Candidate], rules: Rules, odd: OddityReport
) -> tuple[list[Candidate], list[Rejected]]:
    kept, problems = [], []
    for candidate in candidates:
        if candidate.text is None:
            kept.append(candidate)
            continue
        odd.add(candidate.where or candidate.id, candidate.text)
        if text := rules(candidate.text):
            kept.append(candidate._replace(text=text))
        else:
            problems.append(Rejected(candidate.where, "no-text", "nothing left of its text"))
    return kept, problems


def _failure(roots: Sequence[str | Path], built: Built, rejects_path: Path | None) -> DataError:
    where = ", ".join(map(str, roots))
    if not built.rejected:
        return DataError("no utterances here", where=where, hint="is it the right folder?")
    shown = [f"{item.path}: {item.detail} [{item.reason}]" for item in built.rejected]
    total = len(built.rejected) + len(built.rows)
    head = f"{len(shown)} of {total} rejected" if built.rows else f"all {total} rejected"
    return DataError(
        "\n  ".join([head, *shortened(shown)]), where=where, hint=f"all are in {rejects_path}"
    )
