"""fairseq's data: ``train.tsv``, and labels in ``train.ltr``, ``train.wrd``, ``train.phn``.

Goes in and out: a ``.tsv`` file whose first line is a folder and whose others are
``path<TAB>samples``, at the file's own rate; ``x.zip:START:LENGTH`` are bytes of an archive. Line i
of a label file belongs to row i: nothing else joins them, so counts are compared, ``.ltr`` is held
against ``.wrd`` line by line, and labels that need more frames than their audio has are told.

There are no ids: a row is called as its path without the ending. Phones are the extra key
``phones``. ``dict.ltr.txt`` is written once, for the training split; a later split must keep to it.
Source: fairseq 0.12.2, ``raw_audio_dataset.py``, ``audio_finetuning.py``, ``audio_utils.py``.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import zip_longest
from pathlib import Path
from typing import Any

from w2vtool.audio import SAMPLE_RATE, Info
from w2vtool.errors import ConfigError, DataError
from w2vtool.formats.rows import (
    CORE,
    Carrier,
    Checks,
    Options,
    Rows,
    all_lines,
    header_of,
    is_part,
    replacing,
    write_text,
)
from w2vtool.manifest import Utterance, emission_frames
from w2vtool.text import WORD_END, frames_needed, letter_name, letters

HOLDS = CORE | {"start", "length", "phones"}
LABELS = (".wrd", ".ltr", ".phn")
DICTIONARY = "dict.ltr.txt"
_SLICE = re.compile(r"(.+):(\d+):(\d+)")


def read(path: Path, options: Options) -> Iterator[Utterance]:
    """Rows of a split. DataError when labels and rows cannot belong together, with the line."""
    _must_be_tsv(path)
    checks = Checks(path, Path())
    files = [path.with_suffix(ending) for ending in LABELS if path.with_suffix(ending).is_file()]
    table = all_lines(path, checks.problem)
    where, root = next(table, (f"{path}:1", ""))
    if "\t" in root or not root.strip():
        what = f"the first line is {root[:60]!r}, not the folder of the audio"
        raise DataError(what, where=where, hint="the first line of a fairseq manifest is a folder")
    checks.root = (options.root or Path(root)).absolute()
    labels = [all_lines(file, checks.problem) for file in files]
    for found in zip_longest(table, *labels):
        if None in found:
            raise _miscounted([path, *files], found, checks.problems)
        (where, line), *said = found
        texts = {file.suffix: text for file, (_, text) in zip(files, said, strict=True)}
        if problem := _quarrel(texts):
            checks.problem(said[0][0], problem)
        elif row := _row(checks, where, line, texts):
            yield row
    checks.finish("each line is 'PATH<TAB>SAMPLES'; labels are in the same order")


def _must_be_tsv(path: Path) -> None:
    if path.suffix != ".tsv":
        hint = f"name the split: {path / 'train.tsv'}"
        raise ConfigError("a fairseq manifest ends in .tsv", where=str(path), hint=hint)


def _miscounted(names: list[Path], found: tuple[Any, ...], before: list[str]) -> DataError:
    """Some files end before others: named is the first line that has no partner.

    ``before`` are problems of earlier lines: the first is where the lines have begun to shift.
    """
    ended = [str(name) for name, item in zip(names, found, strict=True) if item is None]
    where = next(item[0] for item in found if item is not None)
    what = f"has no line of {' and '.join(ended)} to go with: which belongs to which is not known"
    if before:
        what += f"\n  the first line that does not fit: {before[0]}"
    hint = "labels are joined by line number; write both files anew from one source"
    return DataError(what, where=where, hint=hint)


def _quarrel(texts: dict[str, str]) -> str:
    """Why the labels of one row cannot be of the same utterance."""
    if ".ltr" in texts and ".wrd" in texts:
        spelled, words = _words(texts[".ltr"]), " ".join(texts[".wrd"].split())
        if spelled != words:
            what = f"the words are {words[:40]!r}, and .ltr in the same line spells"
            return f"{what} {spelled[:40]!r}: are the lines shifted?"
    return ""


def _words(spelled: str) -> str:
    return " ".join("".join(spelled.split()).replace(WORD_END, " ").split())


def _row(checks: Checks, where: str, line: str, texts: dict[str, str]) -> Utterance | None:
    cells = line.split("\t")
    if len(cells) != 2 or not re.fullmatch(r"[0-9]{1,15}", cells[1].strip()):
        checks.problem(where, f"not 'PATH<TAB>SAMPLES': {line[:60]!r}")
        return None
    audio, samples = cells[0], int(cells[1])
    known: dict[str, Any] = {"id": Path(audio).with_suffix("").as_posix() if audio else ""}
    if match := _SLICE.fullmatch(audio):
        known = {"id": audio, "start": int(match[2]), "length": int(match[3])}
        audio = match[1]
    text = texts.get(".wrd") or _words(texts.get(".ltr", "")) or None
    phones = {"phones": texts[".phn"]} if texts.get(".phn") else {}
    rate = checks.rate(audio, known.get("start"), known.get("length"))
    known |= {"sample_rate": rate, "duration": samples / (rate or SAMPLE_RATE)}
    return checks.row(where, audio, **known, text=text, extra=phones)


def misfits(row: Utterance) -> bool:
    """Whether the letters of a row need more frames than its audio gives: a sign of a shift."""
    return frames_needed(letters(row.text or "")) > emission_frames(row.samples)


def write(path: Path, rows: Rows, options: Options, *, force: bool = False) -> Carrier:
    """Write a split, labels if any row has them, and the dictionary if there is none yet."""
    _must_be_tsv(path)
    carrier = Carrier("fairseq", path, HOLDS)
    folder, root, has = path.absolute().parent, "", Counter[str]()
    counts: Counter[str] = Counter()
    found: dict[str, Info | None] = {}
    unseen = 0
    for row in rows:  # the first pass: the folder that holds all audio, and the letters
        above = str(Path(row.audio).parent)
        root = os.path.commonpath([root, above]) if root else above
        has["text"] += bool(row.text)
        has["phones"] += bool(row.extra.get("phones"))
        counts.update(letters(row.text or ""))
    endings = [".wrd", ".ltr"] * bool(has["text"]) + [".phn"] * bool(has["phones"])
    new_words = _new_dictionary(folder / DICTIONARY, counts)
    names = [path.with_suffix(ending).name for ending in LABELS]
    with replacing(folder, path.name, names, force=force) as stage:
        with _opened([stage / path.with_suffix(e).name for e in [".tsv", *endings]]) as files:
            files[0].write(f"{root}\n")
            for row in rows:
                info = header_of(row, found)
                rate = info.sample_rate if info else row.sample_rate or SAMPLE_RATE
                unseen += info is None
                if carrier.check(row) and _writable(carrier, row, info, rate):
                    for file, line in zip(files, _lines(row, root, endings, rate), strict=True):
                        file.write(f"{line}\n")
        carrier.finish("cut the parts out of their files first, and normalise the texts")
        if new_words and has["text"]:
            write_text(stage / DICTIONARY, new_words)
            (stage / DICTIONARY).replace(folder / DICTIONARY)
    if rates := carrier.lost.pop("sample_rate", 0):
        what = "rows are not at 16 kHz, where fairseq stops: convert their audio first"
        carrier.remarks.append(f"{rates:,} {what}")
    if unseen:
        what = "rows whose audio is not here: whether they are whole files was not checked"
        carrier.remarks.append(f"{unseen:,} {what}")
    return carrier


@contextmanager
def _opened(paths: list[Path]) -> Iterator[list[Any]]:
    files = [path.open("w", encoding="utf-8", newline="\n") for path in paths]
    try:
        yield files
        for file in files:
            file.flush()
            os.fsync(file.fileno())
    finally:
        for file in files:
            with suppress(OSError):
                file.close()


def _writable(carrier: Carrier, row: Utterance, info: Info | None, rate: int) -> bool:
    text, samples = row.text or "", row.duration * rate
    if "\n" in text or "\r" in text or WORD_END in text:
        carrier.refuse(row, f"a line break or {WORD_END!r} in its text, {text[:40]!r}")
    elif row.start is None and _SLICE.fullmatch(row.audio):
        carrier.refuse(row, f"fairseq would take {row.audio!r} for bytes of an archive")
    elif info is not None and is_part(row, info):
        carrier.refuse(row, f"the first {row.duration:.3f} s of a file of {info.seconds:.3f} s")
    elif not round(samples):
        carrier.refuse(row, f"{row.duration} s is not a single sample")
    elif re.search(r"[\n\r]", str(row.extra.get("phones", ""))):
        carrier.refuse(row, "a line break in its phones")
    else:
        if abs(samples - round(samples)) > 1e-3:
            carrier.lost["parts of a sample (lengths are whole samples)"] += 1
        return True
    return False


def _lines(row: Utterance, root: str, endings: list[str], rate: int) -> Iterator[str]:
    audio = Path(row.audio).relative_to(root).as_posix()
    span = f":{row.start}:{row.length}" if row.start is not None else ""
    yield f"{audio}{span}\t{round(row.duration * rate)}"
    labels = {".wrd": row.text or "", ".ltr": " ".join(letters(row.text or ""))}
    labels[".phn"] = str(row.extra.get("phones", ""))
    yield from (labels[ending] for ending in endings)


def _refuse(where: str, what: str) -> None:
    raise DataError(what, where=where)


def _new_dictionary(path: Path, counts: Counter[str]) -> list[str]:
    """Lines of a dictionary by falling count; none when there is one already, which must do."""
    if path.is_file():
        known = {line.partition(" ")[0] for _, line in all_lines(path, _refuse)}
        missing = sorted(counts.keys() - known)
        if missing:
            shown = ", ".join(map(letter_name, missing[:10]))
            hint = "write the training split first, or remove the dictionary"
            what = f"letters that are not in the dictionary: {shown}"
            raise DataError(what, where=str(path), hint=hint)
        return []
    found = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return [f"{letter} {count}" for letter, count in found]
