"""Recognised texts and what was said, as files hold them.

Goes in: ``hyp.jsonl`` of ``decode`` (or its run folder), NIST's ``.trn``, and for references also
manifests and all that a corpus is read from. Goes out: texts by id, with the speaker where known.

Source of the form: NIST's SCTK, doc/infmts.htm (trn): the words, then the id in parentheses.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from w2vtool import kinds
from w2vtool.errors import DataError, shortened

_TRN = re.compile(r"(.*?)\s*\(([^()]+)\)\s*$")
_FORMS = 'a run folder of decode, its hyp.jsonl, {"id": …, "text": …} lines, or a .trn'
_NO_ID = re.compile(r"[\s()]")


class Text(NamedTuple):
    """A text of an utterance; ``reference`` is what was said, if the same line tells it."""

    text: str
    speaker: str | None = None
    reference: str | None = None


Texts = dict[str, Text]


def read(path: Path) -> Texts:
    """What was recognised. DataError lists every bad line as ``file:line`` (20 of them)."""
    if path.is_dir():
        path = path / "hyp.jsonl"
    if path.suffix not in (".jsonl", ".trn") and path.exists():
        raise DataError(f"neither .jsonl nor .trn: {path.name}", where=str(path), hint=_FORMS)
    return _gather(path, _trn(path) if path.suffix == ".trn" else _jsonl(path))


def references(path: Path) -> Texts:
    """What was said: of a manifest (``.jsonl``), a ``.trn``, a table or a folder of a corpus.

    Utterances without a transcript are left out. DataError as by ``read``, or if none has one.
    """
    from w2vtool import corpora, manifest

    if path.suffix == ".trn":
        return read(path)
    rows = manifest.read(path).rows if path.suffix == ".jsonl" else corpora.scan(path).candidates
    found = {row.id: Text(row.text, row.speaker) for row in rows if row.text is not None}
    if not found:
        raise DataError("no utterance has a transcript", where=str(path))
    return found


def spoken(texts: Sequence[tuple[Path, Texts]]) -> Texts:
    """The references beside the hypotheses. DataError if there are none, or if they differ."""
    said: Texts = {}
    differ = []
    for path, found in texts:
        for name, line in found.items():
            if line.reference is None:
                continue
            before = said.setdefault(name, line._replace(text=line.reference))
            if before.text != line.reference:
                differ.append(f"{path}: {name}: {line.reference!r}, and {before.text!r}")
    if differ:
        raise DataError(
            "\n  ".join(["references that differ", *shortened(differ)]), hint="--references FILE"
        )
    if not said:
        raise DataError("no references", where=str(texts[0][0]), hint="--references FILE")
    return said


def check_ids(texts: Sequence[tuple[Path, Texts]], said: Texts) -> None:
    """Raise DataError where an utterance of the references has no hypothesis."""
    problems = []
    hint = "missing=delete counts the words of such utterances as deleted"
    for path, found in texts:
        missing = [name for name in said if name not in found]
        if len(missing) == len(said):
            ids = f"{next(iter(found))!r}, of the references {missing[0]!r}"
            problems.append(f"{path}: no id in common; of the hypotheses {ids}")
            hint = "are both of the same recordings, under the same ids?"
        else:
            problems += [f"{path}: nothing for {name!r}" for name in missing]
    if problems:
        raise DataError("\n  ".join(["hypotheses are missing", *shortened(problems)]), hint=hint)


def trn(texts: Iterable[tuple[str, str]]) -> str:
    """The ``.trn`` form of ids and texts; white space and parentheses in an id become ``_``."""
    return "".join(f"{text} ({_NO_ID.sub('_', name)})\n" for name, text in texts)


Row = tuple[str, Text] | str  # or what is wrong with it


def _gather(path: Path, rows: Iterator[Row]) -> Texts:
    if problem := kinds.problem(path, "file of transcripts"):
        raise DataError(problem, where=str(path), hint=_FORMS)
    found: Texts = {}
    problems = []
    try:
        for number, row in enumerate(rows, 1):
            if isinstance(row, str):
                problems += [f"{path}:{number}: {row}"] if row else []
            elif row[0] in found:
                problems.append(f"{path}:{number}: {row[0]!r} a second time")
            else:
                found[row[0]] = row[1]
    except UnicodeDecodeError:
        raise DataError("not UTF-8 text", where=str(path)) from None
    if problems:
        raise DataError(
            "\n  ".join(["lines that are no texts of utterances", *shortened(problems)]),
            hint=_FORMS,
        )
    if not found:
        raise DataError("no utterances", where=str(path))
    return found


def _lines(path: Path) -> Iterator[str]:
    with path.open(encoding="utf-8-sig") as file:
        yield from file


def _jsonl(path: Path) -> Iterator[Row]:
    for line in _lines(path):
        try:
            row = json.loads(line) if line.strip() else ""
        except ValueError:
            row = None
        if row == "":
            yield ""
        elif not isinstance(row, dict):
            yield "not JSON of a line"
        elif not isinstance(row.get("id"), str) or not isinstance(row.get("text"), str):
            yield "no id and text"
        else:
            more = [row.get(key) for key in ("speaker", "reference")]
            speaker, reference = (value if isinstance(value, str) else None for value in more)
            yield row["id"], Text(row["text"], speaker, reference)


def _trn(path: Path) -> Iterator[Row]:
    for line in _lines(path):
        if not line.strip() or line.startswith(";;"):
            yield ""
        elif match := _TRN.match(line):
            yield match[2].strip(), Text(match[1])
        else:
            yield "no (id) at its end"
