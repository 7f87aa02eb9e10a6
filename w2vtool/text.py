"""Transcripts: read strictly, brought to one spelling, and searched for what should not be there.

Goes in: files of text, and transcripts. Goes out: lines with their numbers, or every fault as
``file:line:column``; text in the spelling that ``Rules`` ask for; and ``Oddity`` values for
characters that nobody sees or says: controls, marks that turn the direction of writing, what a
wrong conversion left behind.

Why numbers stay as they are: how ``1984`` was said depends on the language and on the speaker, and
a guess would be a wrong label. Texts with digits are counted and named instead.

Why every rule is a loop over characters and no expression: what is linear by construction cannot be
made slow by a hostile transcript.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, fields
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

from w2vtool.errors import SHOWN_PROBLEMS, DataError, shortened

WORD_END = "|"
LONGEST_LINE = 1 << 20  # bytes; a transcript that long is a file without line ends
_HEAD_BYTES = 4096  # that tell what a file is
MOST_MARKS = 30  # accents on one letter

_APOSTROPHES = str.maketrans({"\u2019": "'", "\u02bc": "'", "\uff07": "'"})
_JOINERS = frozenset("\u200c\u200d")  # spelling in Persian and Hindi, nothing outside words
BIDI = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
_DIGITS = frozenset("0123456789")
_WHITE = frozenset("\t\n\r\v\f\x1c\x1d\x1e\x1f\x85")  # controls that separate words
_MARKS = (  # longest first: the one of UTF-32 begins like that of UTF-16
    (b"\xff\xfe\x00\x00", "UTF-32"),
    (b"\x00\x00\xfe\xff", "UTF-32"),
    (b"\xff\xfe", "UTF-16"),
    (b"\xfe\xff", "UTF-16"),
    (b"\x1f\x8b", "gzip"),
)

Case = Literal["upper", "lower", "keep"]
Punctuation = Literal["keep", "drop"]
Apostrophes = Literal["keep", "drop", "space"]


@dataclass(frozen=True)
class Rules:
    """How transcripts are spelled; travels with a checkpoint, so that references are, too."""

    case: Case = "upper"
    punctuation: Punctuation = "keep"
    apostrophes: Apostrophes = "keep"

    @classmethod
    def of(cls, said: Any) -> Rules:
        """The rules that a ``text`` section, or what a checkpoint says of its texts, asks for.

        Raises DataError where a value is none that this version knows.
        """
        values = {item.name: getattr(said, item.name) for item in fields(cls)}
        for name, known in (("case", Case), ("punctuation", Punctuation)):
            if values[name] not in get_args(known):
                raise DataError(f"unknown {name} of texts {values[name]!r}")
        if values["apostrophes"] not in get_args(Apostrophes):
            raise DataError(f"unknown treatment of apostrophes {values['apostrophes']!r}")
        return cls(**values)

    def __call__(self, text: str) -> str:
        """The text in this spelling."""
        return normalize(
            text, self.case, punctuation=self.punctuation, apostrophes=self.apostrophes
        )

    def __str__(self) -> str:
        case = "case kept" if self.case == "keep" else f"{self.case} case"
        marks = "kept" if self.punctuation == "keep" else "dropped"
        quotes = {"keep": "kept", "drop": "dropped", "space": "turned into spaces"}
        return (
            f"NFC, {case}, punctuation {marks}, apostrophes {quotes[self.apostrophes]}, "
            "numbers left alone"
        )


DEFAULT_RULES = Rules()


def normalize(
    text: str,
    case: Case = "upper",
    *,
    punctuation: Punctuation = "keep",
    apostrophes: Apostrophes = "keep",
) -> str:
    """Return the transcript in one spelling.

    Rules, in this order: Unicode NFC, with at most 30 marks on a letter; typographic apostrophes
    become ``'``; control characters become spaces; invisible format characters vanish (zero-width
    spaces, soft hyphens, marks of direction), joiners only where they are not between two letters;
    ``apostrophes`` inside of a word stay, vanish or become a space, all others are punctuation;
    ``punctuation="drop"`` turns dashes and slashes into spaces and removes all other punctuation,
    symbols and what modifies them; upper or lower case by Unicode's default rules (``ß`` → ``SS``,
    Turkish dots are not special); any run of white space becomes one space. Digits stay.
    """
    if not text.isascii():
        text = _composed(text).translate(_APOSTROPHES)
    if not text.isprintable() or not _JOINERS.isdisjoint(text):
        text = _visible(text)
    if punctuation == "drop" or apostrophes != "keep":
        text = _spoken(text, punctuation, apostrophes)
    if case != "keep":
        text = text.upper() if case == "upper" else text.lower()
    if not text.isascii():
        text = _composed(text)
    return " ".join(text.split())


def _composed(text: str) -> str:
    """NFC, without the marks that stand after 30 others.

    Why: sorting the marks of one letter takes time by the square of their number, an hour for 1 MB.
    Source: 30 is the limit of UAX #15, section 13 (stream-safe text); no language comes near it.
    """
    if len(text) > MOST_MARKS:
        kept, run = [], 0
        for letter in text:
            run = run + 1 if unicodedata.combining(letter) else 0
            if run <= MOST_MARKS:
                kept.append(letter)
        text = "".join(kept)
    return unicodedata.normalize("NFC", text)


def _visible(text: str) -> str:
    """Without format characters, and with spaces for controls."""
    kinds = [(letter, unicodedata.category(letter)) for letter in text]
    seen = "".join(
        " " if kind == "Cc" else letter
        for letter, kind in kinds
        if kind != "Cf" or letter in _JOINERS
    )
    if _JOINERS.isdisjoint(seen):
        return seen
    return "".join(
        letter
        for before, letter, after in _with_neighbours(seen)
        if letter not in _JOINERS or (_of_word(before) and _of_word(after))
    )


def _spoken(text: str, punctuation: Punctuation, apostrophes: Apostrophes) -> str:
    """With the apostrophes inside of words as asked, and without punctuation if asked."""
    inside = {"keep": "'", "drop": "", "space": " "}[apostrophes]
    kept = []
    for before, letter, after in _with_neighbours(text):
        kind = unicodedata.category(letter)
        if letter == "'" and _of_word(before) and _of_word(after):
            kept.append(inside)
        elif punctuation == "keep":
            kept.append(letter)
        elif kind == "Pd" or letter in "/\\":
            kept.append(" ")
        elif kind[0] not in "PS" and not _modifies(letter):
            kept.append(letter)
    return "".join(kept)


def _with_neighbours(text: str) -> Iterator[tuple[str, str, str]]:
    padded = f" {text} "
    return zip(padded, text, padded[2:], strict=False)


def _of_word(letter: str) -> bool:
    return letter.isalnum() or (unicodedata.category(letter)[0] == "M" and not _modifies(letter))


def _modifies(letter: str) -> bool:
    """Whether it only says how the character before it is drawn: a keycap, an emoji in colour."""
    return (
        "\ufe00" <= letter <= "\ufe0f"
        or "\U000e0100" <= letter <= "\U000e01ef"
        or unicodedata.category(letter) == "Me"
    )


def letters(text: str) -> list[str]:
    """Letters with every word closed by ``|``: ``"AB C"`` → ``A B | C |``."""
    return [symbol for word in text.split() for symbol in (*word, WORD_END)]


def frames_needed(labels: Sequence[object]) -> int:
    """Shortest CTC alignment: one frame a label, and a blank between two equal ones."""
    return len(labels) + sum(a == b for a, b in pairwise(labels))


def letter_name(letter: str) -> str:
    """A letter as people can tell it apart: ``Q``, ``'é' (LATIN SMALL LETTER E WITH ACUTE)``."""
    if letter.isascii() and letter.isprintable():
        return repr(letter)
    name = unicodedata.name(letter, "no name")
    shown = f"{letter!r} " if letter.isprintable() else ""
    return f"{shown}(U+{ord(letter):04X} {name})"


class Oddity(NamedTuple):
    """A character that is not seen or said: where it stands (from 1), and what ``Rules`` make."""

    column: int
    letter: str
    fate: str  # removed, a space, kept


def oddities(text: str) -> list[Oddity]:
    """Controls, marks of direction, and the traces of a wrong conversion in a text.

    White space and joiners are none. What stays after ``normalize`` (U+FFFD, private use) is then
    outside of any ordinary vocabulary, and is named there.
    """
    if text.isprintable() and "\ufffd" not in text:  # nearly all texts
        return []
    found = ((column, letter, _fate(letter)) for column, letter in enumerate(text, start=1))
    return [Oddity(column, letter, fate) for column, letter, fate in found if fate]


def _fate(letter: str) -> str:
    kind = unicodedata.category(letter)
    if kind == "Cc":
        return "" if letter in _WHITE else "a space"
    if kind == "Cf":
        return "" if letter in _JOINERS else "removed"
    return "kept" if kind in ("Co", "Cn", "Cs") or letter == "\ufffd" else ""


@dataclass
class OddityReport:
    """Oddities of many texts: how often each, where first, and what becomes of it."""

    counts: Counter[tuple[str, str]] = field(default_factory=Counter)
    first: dict[str, str] = field(default_factory=dict)

    def add(self, where: str, text: str) -> None:
        """Search one text; ``where`` is the file and line that it stands in."""
        for column, letter, fate in oddities(text):
            self.counts[letter, fate] += 1
            self.first.setdefault(letter, f"{where}:{column}" if where else f"column {column}")

    def lines(self) -> list[str]:
        """A line for each kind of character, the most frequent first."""
        return [
            f"{'direction mark ' if letter in BIDI else ''}{letter_name(letter)}: {count} times, "
            f"{fate}, first in {self.first[letter]}"
            for (letter, fate), count in self.counts.most_common(SHOWN_PROBLEMS)
        ]


class Fault(NamedTuple):
    """Why a line cannot be used; ``column`` is in characters, from 1."""

    line: int
    column: int
    what: str
    hint: str = ""


def scan_lines(
    path: str | Path, opener: Callable[..., Any] = open, longest: int = LONGEST_LINE
) -> Iterator[tuple[int, str] | Fault]:
    r"""Lines of a UTF-8 file with their numbers, from 1, or what is wrong with them.

    A byte order mark and ``\r`` before a line's end are taken away; lines end with ``\n`` alone.
    Faults: bytes that are not UTF-8, NUL, lines of more than ``longest`` bytes; UTF-16, UTF-32,
    gzip and binary files are one fault. Memory is bounded by one line. DataError when it cannot be
    read.
    ``opener`` is for packed files: ``gzip.open``; what else it raises for damage comes through.
    """
    path = Path(path)
    try:
        with opener(path, "rb") as file:
            start = file.peek(_HEAD_BYTES)[:_HEAD_BYTES]  # a pipe cannot go back
            kind = next((name for mark, name in _MARKS if start.startswith(mark)), "")
            if kind:
                yield _foreign(kind)
                return
            if b"\0\0" in start:
                yield Fault(1, 1, "is a binary file, not text")
                return
            file.read(3 if start.startswith(b"\xef\xbb\xbf") else 0)
            number = 0
            while raw := file.readline(longest + 2):
                number += 1
                if len(raw) > longest and not raw.endswith(b"\n"):
                    yield _endless(number, longest)
                    while raw and not raw.endswith(b"\n"):  # the rest of it, part by part
                        raw = file.readline(longest)
                    continue
                yield _decoded(number, raw.removesuffix(b"\n").removesuffix(b"\r"))
    except OSError as error:
        what = f"cannot be read ({error.strerror or error})"
        raise DataError(what, where=str(path)) from error


def _foreign(kind: str) -> Fault:
    if kind == "gzip":
        return Fault(1, 1, "is compressed (gzip), not text", "gunzip it first")
    hint = f"iconv -f {kind} -t UTF-8 FILE > NEW"
    return Fault(1, 1, f"is {kind}, not UTF-8 (by its byte order mark)", hint)


def _endless(number: int, longest: int) -> Fault:
    what = f"a line of more than {longest:,} bytes"
    return Fault(number, 1, what, "one utterance a line")


def _decoded(number: int, raw: bytes) -> tuple[int, str] | Fault:
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        column = len(raw[: error.start].decode("utf-8")) + 1
        byte = raw[error.start : error.start + 1]
        other = byte.decode("cp1252", "replace")
        guess = f"; in Windows-1252 it would be {other!r}" if other.isalpha() else ""
        what = f"byte 0x{byte.hex().upper()} is not UTF-8{guess}"
        return Fault(number, column, what, "iconv -f WINDOWS-1252 -t UTF-8 FILE > NEW")
    if "\x00" in text:
        column = text.index("\x00") + 1
        many = text.count("\x00") * 3 > len(text)
        what = "a NUL character" + ("; is the file UTF-16 without a mark?" if many else "")
        return Fault(number, column, what, "iconv -f UTF-16LE -t UTF-8 FILE > NEW" if many else "")
    return number, text


def stream_lines(
    path: str | Path, opener: Callable[..., Any] = open, longest: int = LONGEST_LINE
) -> Iterator[tuple[int, str]]:
    """The lines of a UTF-8 file with their numbers, however long it is; see ``scan_lines``.

    Raises one DataError at the end that lists every fault as ``file:line:column`` (the first 20).
    """
    faults: list[Fault] = []
    for item in scan_lines(path, opener, longest):
        if isinstance(item, Fault):
            faults.append(item)
        else:
            yield item
    if faults:
        raise faulty(path, faults)


def read_lines(path: str | Path) -> list[tuple[int, str]]:
    """All of ``stream_lines``, or its DataError."""
    return list(stream_lines(path))


def faulty(path: str | Path, faults: Sequence[Fault]) -> DataError:
    """One error for the faults of a file."""
    first = faults[0]
    if len(faults) == 1:
        return DataError(first.what, where=f"{path}:{first.line}:{first.column}", hint=first.hint)
    listed = (f"{path}:{fault.line}:{fault.column}: {fault.what}" for fault in faults)
    shown = shortened(list(listed))
    return DataError(
        "\n  ".join([f"{len(faults)} lines cannot be read", *shown]),
        where=str(path),
        hint=first.hint,
    )


def has_digits(text: str) -> bool:
    """Whether there is a digit of any script in the text."""
    if text.isascii():
        return not _DIGITS.isdisjoint(text)
    return any(letter.isdigit() for letter in text)
