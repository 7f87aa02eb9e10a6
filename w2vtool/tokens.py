"""Tokens: the symbols that a CTC model emits, letters or SentencePiece pieces.

Goes in: texts that ``w2vtool.text`` brought to one spelling. Goes out: label ids and back, under a
``Tokens`` that travels inside of the checkpoint, so that a model and its vocabulary cannot be mixed
up.

Why the specials come first: id 0 is the CTC blank (fairseq's ``<s>``), and the order of ``LETTERS``
is the one of the published fine-tuned models, so their weights fit without a permutation.
"""

from __future__ import annotations

import base64
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import Any, Literal

from w2vtool.errors import DataError
from w2vtool.text import WORD_END, letter_name, letters, read_lines

SPECIALS = ("<s>", "<pad>", "</s>", "<unk>")
UNKNOWN = "<unk>"
# Source: dict.ltr.txt of fairseq's fine-tuned models; by falling count in LibriSpeech.
LETTERS = (*SPECIALS, *"|ETAONIHSRDLUMWCFGYPBVK'XJQZ")

_COUNTED = re.compile(r"\S+ \d+( #fairseq:overwrite)?")
WORD_BEGIN = "▁"  # SentencePiece's mark

Kind = Literal["letters", "sentencepiece"]


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
        for number, line in enumerate(_lines(path), start=1):
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
        lines = _lines(path)
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

    def encode(self, text: str, *, unknown: bool = False) -> list[int]:
        """Label ids of a normalised text; DataError naming all letters outside the vocabulary.

        With ``unknown``, these become ``<unk>``, which the vocabulary must have.
        """
        strange = self.unknown(text)
        if strange and unknown and UNKNOWN in self._ids:
            return [self._ids[piece] for piece in self._with_unknown(text, set(strange))]
        if strange:
            raise DataError(
                f"outside the vocabulary: {', '.join(map(letter_name, strange))}",
                where=f"text {text[:60]!r}",
                hint="normalise the text (case, punctuation), or train tokens on these texts",
            )
        return [self._ids[piece] for piece in self.pieces(text)]

    def unknown(self, text: str) -> list[str]:
        """Letters of a text that ``encode`` refuses, in code point order."""
        if self.kind == "sentencepiece":
            strange = (piece for piece in self.pieces(text) if piece not in self._ids)
            return sorted({letter for piece in strange for letter in piece} - {WORD_BEGIN})
        found = {letter for word in text.split() for letter in word}
        return sorted(found - self._ids.keys() | found & {WORD_END})  # "|" would become a space

    def decode(self, ids: Iterable[int]) -> str:
        """Text of ids that are already collapsed: ``|`` → space, specials and blank vanish."""
        skipped = {self.blank, *(self._ids.get(special) for special in SPECIALS)}
        pieces = [self.symbols[index] for index in ids if index not in skipped]
        if self.kind == "sentencepiece":
            return " ".join(str(_processor(self.model).decode_pieces(pieces)).split())
        return " ".join("".join(pieces).replace(WORD_END, " ").split())

    def pieces(self, text: str) -> list[str]:
        """The symbols that spell a text, those outside the vocabulary too."""
        if self.kind == "sentencepiece":
            return list(_processor(self.model).encode(text, out_type=str))
        return letters(text)

    def _with_unknown(self, text: str, strange: set[str]) -> list[str]:
        if self.kind == "sentencepiece":
            return [piece if piece in self._ids else UNKNOWN for piece in self.pieces(text)]
        return [
            symbol
            for word in text.split()
            for symbol in (*(UNKNOWN if letter in strange else letter for letter in word), WORD_END)
        ]

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


def _lines(path: str | Path) -> list[str]:
    return [line for _, line in read_lines(path)]


@cache
def _processor(model: bytes) -> Any:
    import sentencepiece

    return sentencepiece.SentencePieceProcessor(model_proto=model)
