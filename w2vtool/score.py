"""Word and letter errors between what was said and what was recognised.

Goes in: reference and hypothesis texts. Goes out: counts of substitutions, deletions and insertions
that add up over a corpus, so that a rate is always all errors over all reference units.

Why counts and not rates: the mean of utterance rates is another number than the corpus rate, and
the two are easily confused.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from rapidfuzz.distance import Levenshtein


class Errors(NamedTuple):
    """Edits of a shortest alignment, and the size of the reference, in words or letters.

    ``a + b`` adds the counts; use ``sum(rows, Errors())`` for many.
    """

    substitutions: int = 0
    deletions: int = 0
    insertions: int = 0
    reference: int = 0

    def __add__(self, other: object) -> Errors:  # counts, not a longer tuple
        if not isinstance(other, Errors):
            return NotImplemented
        return Errors(*(a + b for a, b in zip(self, other, strict=True)))

    @property
    def errors(self) -> int:
        """Substitutions, deletions and insertions together."""
        return self.substitutions + self.deletions + self.insertions

    @property
    def rate(self) -> float:
        """Errors per reference unit; may pass 1.

        With an empty reference every insertion counts as if the reference had one unit (jiwer's
        convention), so nothing said and nothing recognised is 0.
        """
        return self.errors / max(self.reference, 1)


class Summary(NamedTuple):
    """Errors of a corpus: ``words`` gives the WER, ``letters`` the CER."""

    utterances: int
    words: Errors
    letters: Errors

    @property
    def wer(self) -> float:
        """Word errors per reference word."""
        return self.words.rate

    @property
    def cer(self) -> float:
        """Letter errors per reference letter, a space between two words being a letter."""
        return self.letters.rate


def word_errors(reference: str, hypothesis: str) -> Errors:
    """Count the edits that turn the reference's words into the hypothesis's."""
    return _count(reference.split(), hypothesis.split())


def letter_errors(reference: str, hypothesis: str) -> Errors:
    """Count the edits of letters, with exactly one space between two words."""
    return _count(" ".join(reference.split()), " ".join(hypothesis.split()))


def summary(pairs: Iterable[tuple[str, str]]) -> Summary:
    """Errors over all (reference, hypothesis) pairs."""
    utterances, words, letters = 0, Errors(), Errors()
    for reference, hypothesis in pairs:
        utterances += 1
        words += word_errors(reference, hypothesis)
        letters += letter_errors(reference, hypothesis)
    return Summary(utterances, words, letters)


def alignment(reference: Sequence[str], hypothesis: Sequence[str]) -> list[tuple[str, str]]:
    """Pairs of units of a shortest alignment; "" stands where one side has none."""
    pairs: list[tuple[str, str]] = []
    for op in Levenshtein.opcodes(reference, hypothesis):
        said = list(reference[op.src_start : op.src_end])
        found = list(hypothesis[op.dest_start : op.dest_end])
        if op.tag == "insert":
            said = [""] * len(found)
        elif op.tag == "delete":
            found = [""] * len(said)
        pairs += zip(said, found, strict=True)
    return pairs


def aligned(pairs: Iterable[tuple[str, str]], width: int) -> list[str]:
    """``REF`` and ``HYP`` lines of at most ``width`` letters, and a line that names the errors.

    Words that belong together stand below each other; ``***`` is none (sclite's form).
    """
    blocks: list[list[str]] = []
    for said, found in pairs:
        cells = [said or "***", found or "***", _kind(said, found)]
        size = max(map(len, cells))
        if not blocks or len(blocks[-1][0]) + 1 + size > width:
            blocks.append(["REF:", "HYP:", "    "])
        blocks[-1] = [
            f"{line} {cell:<{size}}" for line, cell in zip(blocks[-1], cells, strict=True)
        ]
    return [line.rstrip() for block in blocks for line in block if line.strip()]


def _kind(said: str, found: str) -> str:
    if said == found:
        return ""
    return "S" if said and found else "D" if said else "I"


def _count(reference: Sequence[str], hypothesis: Sequence[str]) -> Errors:
    kinds = [op.tag for op in Levenshtein.editops(reference, hypothesis)]
    return Errors(
        kinds.count("replace"), kinds.count("delete"), kinds.count("insert"), len(reference)
    )
