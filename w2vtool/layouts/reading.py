"""What layouts share: walking folders, reading lines and tables, saying what does not fit.

Goes in: paths. Goes out: files in a stable order, and rows, each made by a function of one line;
that function raises ``Misfit`` for what does not fit, and reading goes on after it.

Files and folders whose name begins with a dot are no part of a corpus (``.ipynb_checkpoints``,
``._`` files of macOS).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from w2vtool.audio import EXTENSIONS
from w2vtool.errors import ConfigError, DataError
from w2vtool.manifest import Candidate, Rejected
from w2vtool.text import Fault, scan_lines

MAX_SECONDS = 1e7  # of a recording: a third of a year
Rows = Iterator[Candidate | Rejected]
Parse = Callable[[str, str], Candidate | None]  # of a line and its file:line


class Misfit(Exception):
    """One row of a corpus cannot be used: a stable code and the fact."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(reason, detail)
        self.reason, self.detail = reason, detail


def files(root: Path) -> Iterator[Path]:
    """All files below a folder in a stable order, through links, but never in circles."""
    if root.is_file():
        yield root
        return
    seen = set()
    for folder, folders, names in os.walk(root, onerror=_unreadable, followlinks=True):
        status = Path(folder).stat()
        if (status.st_dev, status.st_ino) in seen:
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(folder, name) for name in sorted(names) if not name.startswith("."))


def _unreadable(error: OSError) -> None:
    raise DataError(f"folder cannot be read ({error.strerror})", where=str(error.filename))


def recordings(root: Path) -> Iterator[Path]:
    """All audio files below a folder."""
    return (path for path in files(root) if path.suffix.lower() in EXTENSIONS)


def lines(path: Path) -> Iterator[tuple[str, str] | Rejected]:
    """(line, its ``file:line``) of what holds something; a line that is no text is rejected."""
    try:
        for found in scan_lines(path):
            if isinstance(found, Fault):
                reason = "not-utf8" if "UTF" in found.what else "bad-line"
                what = f"column {found.column}: {found.what}"
                yield Rejected(f"{path}:{found.line}", reason, what)
            elif found[1].strip():
                yield found[1], f"{path}:{found[0]}"
    except DataError as error:
        yield Rejected(str(path), "unreadable", error.what)


def parsed(path: Path, parse: Parse) -> Rows:
    """A row for every line of a file for which ``parse`` gives one."""
    for found in lines(path):
        if isinstance(found, Rejected):
            yield found
            continue
        line, where = found
        try:
            row = parse(line, where)
        except Misfit as error:
            row_or_not: Candidate | Rejected | None = Rejected(where, error.reason, error.detail)
        else:
            row_or_not = row
        if row_or_not is not None:
            yield row_or_not


def table(
    path: Path,
    needed: Iterable[str],
    parse: Callable[[dict[str, str], str], Candidate | None],
) -> Rows:
    """A row for every line of a table (tabs, no quotes) that begins with names of columns.

    DataError when a needed column is not named.
    """
    names: list[str] = []

    def row(line: str, where: str) -> Candidate | None:
        cells = line.split("\t")
        if not names:
            names.extend(cell.strip() for cell in cells)
            if missing := [name for name in needed if name not in names]:
                raise DataError(f"no column {missing[0]!r}: {line[:60]!r}", where=where)
            return None
        if len(cells) != len(names):
            raise Misfit("bad-line", f"{len(cells)} columns, not {len(names)}: {line[:60]!r}")
        return parse(dict(zip(names, cells, strict=True)), where)

    return parsed(path, row)


def pairs(path: Path) -> tuple[dict[str, str], list[Rejected]]:
    """``ID TEXT`` lines of a file as a dictionary, and what is wrong with its other lines."""
    found: dict[str, str] = {}
    problems: list[Rejected] = []
    for item in lines(path):
        if isinstance(item, Rejected):
            problems.append(item)
            continue
        name, *rest = item[0].strip().split(maxsplit=1)
        if not rest:
            problems.append(Rejected(item[1], "bad-line", f"not 'ID TEXT': {item[0][:60]!r}"))
        else:
            found[name] = rest[0]
    return found, problems


def existing(path: Path, shown: str = "") -> Path:
    """The path if it is a file. Misfit if not."""
    if not is_file(path):
        raise Misfit("missing", f"no audio file {shown or path.name}")
    return path


def is_file(path: Path) -> bool:
    """Whether it is one; never an error, whatever the name."""
    try:
        return path.is_file()
    except (OSError, ValueError):  # a name that cannot be one: a sentence, a NUL
        return False


def seconds(text: str) -> float:
    """A time. Misfit if it is none."""
    try:
        found = float(text)
    except ValueError:
        found = -1.0
    if not 0 <= found < MAX_SECONDS:
        raise Misfit("bad-line", f"{text[:20]!r} is not a time in seconds")
    return found


def span(start: str, end: str) -> tuple[float, float]:
    """Offset and duration in seconds of a piece. Misfit if it ends before it begins."""
    offset, stop = seconds(start), seconds(end)
    if (duration := round(stop - offset, 6)) <= 0:
        raise Misfit("bad-line", f"ends at {end} s, before it begins at {start} s")
    return offset, duration


def above(path: Path, name: str) -> Path | None:
    """The nearest ``name`` (a path) in a folder or in one of those above it."""
    start = path.absolute()
    return next(
        (folder / name for folder in (start, *start.parents) if (folder / name).exists()), None
    )


def choose(part: str, known: Iterable[str], root: Path) -> str:
    """A part that the layout knows. ConfigError if it is another."""
    names = list(known)
    if part not in names:
        hint = f"its parts are {', '.join(names)}"
        raise ConfigError(f"no part {part!r}", where=f"{root}:{part}", hint=hint)
    return part


def nothing(what: str, root: Path, hint: str = "") -> DataError:
    """The error of a folder that does not hold the corpus."""
    return DataError(what, where=str(root), hint=hint or "is it the right folder?")


def extra(**labels: str | float | None) -> dict[str, str | float]:
    """Labels that are there."""
    return {name: value for name, value in labels.items() if value not in (None, "")}
