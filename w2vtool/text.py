"""Text to labels and back: the normaliser, and the tokens that a CTC model emits.

Goes in: transcripts. Goes out: text in one spelling, and label ids under a ``Tokens`` that travels
inside of the checkpoint, so that a model and its vocabulary cannot be mixed up.

Why the specials come first: id 0 is the CTC blank (fairseq's ``<s>``), and the order of ``LETTERS``
is the one of the published fine-tuned models, so their weights fit without a permutation.
"""

from __future__ import annotations

import base64
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

from w2vtool.errors import DataError

SPECIALS = ("<s>", "<pad>", "</s>", "<unk>")
WORD_END = "|"
# Source: dict.ltr.txt of fairseq's fine-tuned models; by falling count in LibriSpeech.
LETTERS = (*SPECIALS, *"|ETAONIHSRDLUMWCFGYPBVK'XJQZ")

_COUNTED = re.compile(r"\S+ \d+( #fairseq:overwrite)?")
_WORD_BEGIN = "▁"  # SentencePiece's mark
_APOSTROPHES = str.maketrans({"\u2019": "'", "\u02bc": "'", "\uff07": "'"})
_INVISIBLE = {"\u00ad", "\u200b", "\u2060", "\ufeff"}  # soft hyphen, zero-width space, BOM …

Case = Literal["upper", "lower", "keep"]
Punctuation = Literal["keep", "drop"]
Kind = Literal["letters", "sentencepiece"]


def normalize(text: str, case: Case = "upper", *, punctuation: Punctuation = "keep") -> str:
    """Return the transcript in one spelling.

    Rules, in this order: Unicode NFC; typographic apostrophes become ``'``; soft hyphens and
    zero-width spaces vanish; ``punctuation="drop"`` turns dashes and slashes into spaces and
    removes all other punctuation and symbols, but for apostrophes next to a letter or digit on
    both sides; upper or lower case by Unicode's default rules (``ß`` → ``SS``, Turkish dots are
    not special); control characters and any run of white space become one space.
    """
    text = unicodedata.normalize("NFC", text).translate(_APOSTROPHES)
    text = "".join(letter for letter in text if letter not in _INVISIBLE)
    if punctuation == "drop":
        text = _without_punctuation(text)
    if case != "keep":
        text = unicodedata.normalize("NFC", text.upper() if case == "upper" else text.lower())
    text = "".join(" " if unicodedata.category(letter) == "Cc" else letter for letter in text)
    return " ".join(text.split())


def _without_punctuation(text: str) -> str:
    kept = []
    padded = f" {text} "
    for before, letter, after in zip(padded, text, padded[2:], strict=False):
        kind = unicodedata.category(letter)
        if letter == "'" and before.isalnum() and after.isalnum():
            kept.append(letter)
        elif kind == "Pd" or letter in "/\\":
            kept.append(" ")
        elif kind[0] not in "PS":
            kept.append(letter)
    return "".join(kept)


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


@dataclass(frozen=True)
class Tokens:
    """The symbols that a CTC model emits, in the order of its output rows.

    ``kind`` is ``letters`` (one symbol a letter, ``|`` after every word) or ``sentencepiece``
    (``model`` holds the SentencePiece file's bytes). ``blank`` is the id of the CTC blank.
    """

    symbols: tuple[str, ...] = LETTERS
    blank: int = 0
    kind: Kind = "letters"
    model: bytes = field(default=b"", repr=False)

    def __post_init__(self) -> None:
        twice = sorted(symbol for symbol, count in Counter(self.symbols).items() if count > 1)
        if twice:
            raise DataError(f"symbols listed twice: {' '.join(map(repr, twice))}")
        if self.kind not in ("letters", "sentencepiece"):
            raise DataError(f"unknown kind of tokens {self.kind!r}")
        if not 0 <= self.blank < len(self.symbols):
            raise DataError(f"blank is {self.blank}, but there are {len(self.symbols)} symbols")
        if self.kind == "letters" and WORD_END not in self._ids:
            raise DataError(
                f"the alphabet has no {WORD_END!r}, which closes every word; models without a word "
                "separator, as those of phonemes, are not supported"
            )

    def __len__(self) -> int:
        return len(self.symbols)

    @cached_property
    def _ids(self) -> dict[str, int]:
        return {symbol: index for index, symbol in enumerate(self.symbols)}

    @classmethod
    def from_texts(cls, texts: Iterable[str]) -> Tokens:
        """Letter tokens for a corpus: the specials, ``|``, then letters by falling count."""
        counts = Counter(letter for text in texts for word in text.split() for letter in word)
        del counts[WORD_END]
        if not counts:
            raise DataError("no letters in the texts", hint="give a manifest with transcripts")
        found = sorted(counts, key=lambda letter: (-counts[letter], letter))
        return cls((*SPECIALS, WORD_END, *found))

    @classmethod
    def from_fairseq_dict(cls, path: str | Path) -> Tokens:
        """Letter tokens of a fairseq ``dict.ltr.txt``: ``SYMBOL COUNT`` lines after the specials.

        Every line that is not of that form is named in the DataError.
        """
        symbols, problems = list(SPECIALS), []
        for number, line in enumerate(_lines(Path(path)), start=1):
            symbol, _, count = line.removesuffix(" #fairseq:overwrite").rpartition(" ")
            if not symbol or not count.isdigit():
                problems.append(f"{path}:{number}: not 'SYMBOL COUNT': {line[:60]!r}")
            symbols.append(symbol)
        if problems:
            raise DataError("\n  ".join(["not a fairseq dictionary", *problems[:20]]))
        return cls(tuple(symbols))

    @classmethod
    def from_dictionary(cls, path: str | Path) -> Tokens:
        """Letter tokens of a fairseq dictionary, or of a list with one symbol a line, blank first.

        A list names every output row; an empty line or a space stands for the word separator, and
        ``-`` in the first row for the blank, as in torchaudio's labels; in another row it is a
        hyphen like any other symbol. Raises DataError.
        """
        lines = _lines(Path(path))
        if lines and all(_COUNTED.fullmatch(line) for line in lines):
            return cls.from_fairseq_dict(path)
        symbols = [line.strip() or WORD_END for line in lines]
        if symbols[:1] == ["-"]:
            symbols[0] = SPECIALS[0]
        try:
            return cls(tuple(symbols))
        except DataError as error:
            hint = "a dictionary has 'SYMBOL COUNT' lines; a list has one symbol a line"
            raise DataError(error.what, where=str(path), hint=hint) from error

    @classmethod
    def from_sentencepiece(cls, path: str | Path) -> Tokens:
        """Piece tokens of a SentencePiece model file; its own control pieces are left out."""
        try:
            model = Path(path).read_bytes()
        except OSError as error:
            raise DataError(f"cannot be read ({error.strerror})", where=str(path)) from error
        try:
            processor = _processor(model)
        except (RuntimeError, ValueError, OSError) as error:
            raise DataError("is not a SentencePiece model", where=str(path)) from error
        pieces = (
            processor.id_to_piece(index)
            for index in range(processor.get_piece_size())
            if not processor.is_control(index) and not processor.is_unknown(index)
        )
        pieces = (piece for piece in pieces if piece not in SPECIALS)
        return cls((*SPECIALS, *pieces), kind="sentencepiece", model=model)

    def encode(self, text: str) -> list[int]:
        """Label ids of a normalised text; DataError naming all letters outside the vocabulary."""
        unknown = self.unknown(text)
        if unknown:
            raise DataError(
                f"outside the vocabulary: {', '.join(map(letter_name, unknown))}",
                where=f"text {text[:60]!r}",
                hint="normalise the text (case, punctuation), or train tokens on these texts",
            )
        return [self._ids[piece] for piece in self._pieces(text)]

    def unknown(self, text: str) -> list[str]:
        """Letters of a text that ``encode`` refuses, in code point order."""
        if self.kind == "sentencepiece":
            strange = (piece for piece in self._pieces(text) if piece not in self._ids)
            return sorted({letter for piece in strange for letter in piece} - {_WORD_BEGIN})
        found = {letter for word in text.split() for letter in word}
        return sorted(found - self._ids.keys() | found & {WORD_END})  # "|" would become a space

    def check(self, texts: Iterable[tuple[str, str]]) -> None:
        """Raise one DataError for a whole corpus of (where, text): each letter, count, place."""
        counts: Counter[str] = Counter()
        first: dict[str, str] = {}
        for where, text in texts:
            for letter in self.unknown(text):
                counts[letter] += text.count(letter)
                first.setdefault(letter, where)
        if counts:
            shown = [
                f"{letter_name(letter)}, {count} times, first in {first[letter]}"
                for letter, count in counts.most_common(20)
            ]
            raise DataError(
                "\n  ".join([f"{len(counts)} letters outside the vocabulary", *shown]),
                hint="normalise the texts (case, punctuation), or use tokens made for them",
            )

    def decode(self, ids: Iterable[int]) -> str:
        """Text of ids that are already collapsed: ``|`` → space, specials and blank vanish."""
        skipped = {self.blank, *(self._ids.get(special) for special in SPECIALS)}
        pieces = [self.symbols[index] for index in ids if index not in skipped]
        if self.kind == "sentencepiece":
            return str(_processor(self.model).decode_pieces(pieces)).strip()
        return " ".join("".join(pieces).replace(WORD_END, " ").split())

    def _pieces(self, text: str) -> list[str]:
        if self.kind == "sentencepiece":
            return list(_processor(self.model).encode(text, out_type=str))
        return letters(text)

    def to_dict(self) -> dict[str, Any]:
        """Everything, in JSON types; the SentencePiece model in base64."""
        record: dict[str, Any] = {"kind": self.kind, "blank": self.blank}
        record["symbols"] = list(self.symbols)
        if self.model:
            record["model"] = base64.b64encode(self.model).decode("ascii")
        return record

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> Tokens:
        """Inverse of ``to_dict``; DataError when it is not such a record."""
        symbols, blank = record.get("symbols"), record.get("blank")
        if not isinstance(symbols, list) or not all(isinstance(item, str) for item in symbols):
            raise DataError("tokens have no list of symbols")
        if not isinstance(blank, int) or isinstance(blank, bool):
            raise DataError(f"blank of the tokens is {blank!r}, not a whole number")
        try:
            model = base64.b64decode(record.get("model", ""), validate=True)
        except (TypeError, ValueError) as error:
            raise DataError("the SentencePiece model of the tokens is not base64") from error
        return cls(tuple(symbols), blank, record.get("kind", "letters"), model)


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise DataError(f"cannot be read ({error.strerror})", where=str(path)) from error
    except UnicodeDecodeError as error:
        raise DataError(f"not UTF-8 (byte {error.start})", where=str(path)) from error


@cache
def _processor(model: bytes) -> Any:
    import sentencepiece

    return sentencepiece.SentencePieceProcessor(model_proto=model)
