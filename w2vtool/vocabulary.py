"""Vocabularies made from text, and what each would cost: coverage, pieces a word, CTC feasibility.

Goes in: texts in one spelling, with the seconds of their audio where these are known. Goes out: a
SentencePiece model or letters with their counts, the same for the same texts on any machine of the
same kind; and an ``Assessment`` of tokens on these texts.

Why the sample is drawn here: SentencePiece draws its own with the seed of the moment.
"""

from __future__ import annotations

import io
import random
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from w2vtool.errors import ConfigError, DataError
from w2vtool.manifest import SAMPLE_RATE, emission_frames
from w2vtool.text import LONGEST_LINE, WORD_END, frames_needed
from w2vtool.tokens import SPECIALS, Tokens

THREADS = 4  # a constant: how sums are split over threads decides their last bits
_CONTROLS = 1  # of SentencePiece's own pieces: <unk>, which our specials stand for

Model = Literal["unigram", "bpe"]


class Sentence(NamedTuple):
    """A text in one spelling, and how long its audio is, if that is known."""

    text: str
    seconds: float | None = None


class Sample(NamedTuple):
    """Some of the sentences in their order, and the letters of all of them."""

    sentences: list[Sentence]
    texts: int
    letters: Counter[str]


def sample(sentences: Iterable[Sentence], limit: int, seed: int = 1) -> Sample:
    """A random ``limit`` of the sentences, the same for the same seed; empty ones do not count."""
    generator = random.Random(seed)
    chosen: list[tuple[int, Sentence]] = []
    letters: Counter[str] = Counter()
    count = 0
    for sentence in sentences:
        if not sentence.text:
            continue
        letters.update(sentence.text)
        if count < limit:
            chosen.append((count, sentence))
        elif (place := generator.randrange(count + 1)) < limit:
            chosen[place] = (count, sentence)
        count += 1
    del letters[" "]
    if not letters:
        raise DataError("no letters in the texts", hint="give manifests with transcripts, or text")
    return Sample([sentence for _, sentence in sorted(chosen)], count, letters)


def most_frequent(
    letters: Counter[str], *, size: int | None, coverage: float, symbols: Sequence[str] = ()
) -> list[tuple[str, int]]:
    """Letters by falling count until ``coverage`` or ``size`` outputs are reached; ``|`` is first.

    ``symbols`` are kept whatever their count. Raises ConfigError when ``size`` is too small.
    """
    counts = +letters
    words_end = counts.pop(WORD_END, 0)
    always = dict.fromkeys(symbols)
    room = (size or len(SPECIALS) + 1 + len(counts) + len(always)) - len(SPECIALS) - 1
    if room < max(1, len(always)):
        raise ConfigError(f"a vocabulary of {size} has no room for letters")
    kept = {letter: counts.pop(letter, 0) for letter in always}
    wanted, found = coverage * (sum(counts.values()) + sum(kept.values())), sum(kept.values())
    for letter, count in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
        if len(kept) >= room or found >= wanted:
            break
        kept[letter] = count
        found += count
    by_count = sorted(kept.items(), key=lambda item: (-item[1], item[0]))
    return [(WORD_END, words_end), *by_count]


def train_pieces(
    texts: Iterable[str],
    size: int,
    *,
    model: Model = "unigram",
    coverage: float = 1.0,
    symbols: Sequence[str] = (),
) -> bytes:
    """A SentencePiece model that gives ``size`` outputs, our four specials among them.

    Texts are taken as they are spelled (no normaliser, no pieces of bytes). Raises ConfigError
    when the texts do not give so many pieces, or need more.
    """
    import sentencepiece

    made = io.BytesIO()
    wanted = size - len(SPECIALS) + _CONTROLS
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(texts),
            model_writer=made,
            vocab_size=wanted,
            model_type=model,
            character_coverage=coverage,
            user_defined_symbols=list(symbols),
            normalization_rule_name="identity",
            byte_fallback=False,
            unk_id=0,
            bos_id=-1,
            eos_id=-1,
            pad_id=-1,
            max_sentence_length=LONGEST_LINE,
            num_threads=THREADS,
            minloglevel=2,
        )
    except RuntimeError as error:
        raise _refused(str(error), size) from error
    return made.getvalue()


def _refused(said: str, size: int) -> ConfigError:
    offset = len(SPECIALS) - _CONTROLS
    if most := re.search(r"value <= (\d+)", said):
        found = int(most[1]) + offset
        return ConfigError(
            f"size is {size}, and these texts give a vocabulary of {found} at most",
            hint=f"--size {found} or less, or more text",
        )
    if least := re.search(r"required_chars\. \d+ vs (\d+)", said):
        found = int(least[1]) + offset
        return ConfigError(
            f"size is {size}, and the letters of these texts alone need {found}",
            hint=f"--size {found} or more, or a lower --character-coverage",
        )
    return ConfigError(f"SentencePiece could not be trained: {said[:200]}")


@dataclass(frozen=True)
class Assessment:
    """Tokens on texts: what they cannot write, and how long the labels are."""

    words: int
    tokens: int  # of the words, word ends included
    letters: int
    unknown: dict[str, int]  # letters outside the vocabulary, with counts
    timed: int  # sentences with audio
    too_short: int  # of those: with fewer frames than CTC needs

    @property
    def coverage(self) -> float:
        """Share of the letters that can be written."""
        return 1 - sum(self.unknown.values()) / self.letters

    @property
    def tokens_a_word(self) -> float:
        """Labels of a word on average, in what was sampled."""
        return self.tokens / max(1, self.words)


def assess(tokens: Tokens, found: Sample) -> Assessment:
    """Encode the sampled sentences; letters are judged on all texts."""
    strange = {letter for letter in found.letters if tokens.unknown(letter)}
    unknown = {letter: found.letters[letter] for letter in strange}
    words = labels = timed = short = 0
    for sentence in found.sentences:
        ids = tokens.encode(sentence.text, unknown=True)
        words += len(sentence.text.split())
        labels += len(ids)
        if sentence.seconds is not None:
            timed += 1
            frames = emission_frames(round(sentence.seconds * SAMPLE_RATE))
            short += frames_needed(ids) > frames
    by_count = dict(sorted(unknown.items(), key=lambda item: (-item[1], item[0])))
    return Assessment(words, labels, found.letters.total(), by_count, timed, short)
