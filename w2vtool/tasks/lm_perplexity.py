"""How well a language model predicts a text: its perplexity, and the words that it does not know.

Goes in: a model, and text files (``.gz``, ``.bz2``, ``.xz`` too) or manifests. Goes out:
perplexity with and without the unknown words, for each file and for all of them.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from w2vtool.errors import DataError
from w2vtool.schema import Config, knob
from w2vtool.task import Task

if TYPE_CHECKING:
    from w2vtool.decoder.ngram import LanguageModel
    from w2vtool.run import Run

SHOWN_WORDS = 20
LINES_A_TICK = 200


class LmPerplexityConfig(Config):
    """Which model, which text."""

    lm: Path = knob(doc="ARPA file, KenLM binary, or folder of lm train.")
    text: tuple[Path, ...] = knob(
        doc="Text files, one sentence a line; or manifests, tables, corpora."
    )
    case: Literal["upper", "lower", "keep"] = knob(
        "keep", "Case that the text is brought to; it must be the model's."
    )
    tokens: Path | None = knob(
        None, "For a model of tokens: what lm train --tokens was given; spells the text."
    )


class Counts(NamedTuple):
    """What a text came to; ``log10`` sums, with the ends of sentences."""

    sentences: int = 0
    words: int = 0
    unknown: int = 0
    log10: float = 0.0
    unknown_log10: float = 0.0  # the share of the unknown words in it

    def plus(self, other: Counts) -> Counts:
        """Both texts."""
        return Counts(
            self.sentences + other.sentences,
            self.words + other.words,
            self.unknown + other.unknown,
            self.log10 + other.log10,
            self.unknown_log10 + other.unknown_log10,
        )

    @property
    def perplexity(self) -> float:
        """Over all words and ends of sentences, as KenLM's ``query`` counts them."""
        return float(10 ** (-self.log10 / max(1, self.words + self.sentences)))

    @property
    def without_unknown(self) -> float:
        """The same without the unknown words."""
        known = self.words - self.unknown + self.sentences
        return float(10 ** (-(self.log10 - self.unknown_log10) / max(1, known)))


def lm_perplexity(config: LmPerplexityConfig, run: Run) -> dict[str, Any]:
    """Score every sentence."""
    from w2vtool.decoder.lm import open_lm
    from w2vtool.lm_texts import sentences, spelled

    model = open_lm(config.lm)
    strange: Counter[str] = Counter()
    found: dict[str, Counts] = {}
    with run.progress(0, "scoring", "sentences") as bar:
        for path in config.text:
            counts, done = Counts(), sum(c.sentences for c in found.values())
            lines = sentences([path], config.case)
            for line in spelled(lines, config.tokens) if config.tokens else lines:
                counts = counts.plus(score(model, line, strange))
                if counts.sentences % LINES_A_TICK == 0:
                    bar.update(done + counts.sentences)
            if not counts.words:
                raise DataError("no words in the text", where=str(path))
            found[str(path)] = counts
    total = Counts()
    for counts in found.values():
        total = total.plus(counts)
    rows = list(found.items()) if len(found) == 1 else [*found.items(), ("all", total)]
    columns = ("", "sentences", "words", "unknown", "perplexity", "without unknown")
    run.table(f"perplexity under {config.lm}", columns, [(name, *cells(c)) for name, c in rows])
    if strange:
        shown = ", ".join(f"{word} ({n})" for word, n in strange.most_common(SHOWN_WORDS))
        run.say(f"{len(strange):,} unknown words: {shown}{', …' * (len(strange) > SHOWN_WORDS)}")
    if total.unknown > total.words / 2:
        run.say(f"most words are unknown: {advice(model, config)}")
    return {
        **total._asdict(),
        "perplexity": round(total.perplexity, 4),
        "perplexity_without_unknown": round(total.without_unknown, 4),
        "files": {name: round(counts.perplexity, 4) for name, counts in found.items()},
    }


def advice(model: LanguageModel, config: LmPerplexityConfig) -> str:
    """What may be wrong where a model knows little of a text."""
    from w2vtool.text import WORD_END
    from w2vtool.tokens import WORD_BEGIN

    if config.tokens is None and (model.knows(WORD_END) or model.knows(WORD_BEGIN)):
        return "the model is one of tokens (letters or pieces), not of words; see --tokens"
    return "is the text in the case of the model? see --case"


def cells(counts: Counts) -> tuple[str, ...]:
    """A row of the table."""
    share = f"{counts.unknown:,} ({100 * counts.unknown / max(1, counts.words):.2f} %)"
    numbers = (f"{counts.perplexity:.2f}", f"{counts.without_unknown:.2f}")
    return (f"{counts.sentences:,}", f"{counts.words:,}", share, *numbers)


def score(model: LanguageModel, line: str, strange: Counter[str]) -> Counts:
    """One sentence; words that the model does not know are counted in ``strange``."""
    words = line.split()
    if not words:
        return Counts()
    state, total, unknown, missed = model.start(), 0.0, 0, 0.0
    for word in words:
        log10, state = model.score(state, word)
        total += log10
        if not model.knows(word):
            unknown, missed = unknown + 1, missed + log10
            strange[word] += 1
    return Counts(1, len(words), unknown, total + model.final(state), missed)


TASK = Task(
    LmPerplexityConfig,
    lm_perplexity,
    flags={"--lm": "lm", "--case": "case", "--tokens": "tokens"},
    inputs="text",
    example="w2vtool lm perplexity --lm runs/demo/lm/lm.arpa recipes/data/demo/lm.txt",
)
