"""What a beam search must find, by the definition: all paths written out, no search.

Only for a handful of tokens and frames. ``expected`` gives the score of every word sequence.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache

import numpy as np

from w2vtool.decoder.lexicon import Lexicon
from w2vtool.decoder.lm import LanguageModel
from w2vtool.decoder.options import BeamOptions
from w2vtool.text import WORD_END
from w2vtool.tokens import Tokens


@dataclass(frozen=True)
class Task:
    """What is searched with."""

    tokens: Tokens
    lexicon: Lexicon | None = None
    lm: LanguageModel | None = None
    options: BeamOptions = field(default_factory=BeamOptions)
    hotwords: Mapping[str, float] = field(default_factory=dict)

    @property
    def ends(self) -> bool:
        """Whether ``|`` ends words."""
        return self.tokens.kind == "letters" and self.options.mode != "tokens"

    def letters(self, read: Sequence[int]) -> str:
        """What tokens spell, ``▁`` and ``|`` as they are."""
        return "".join(self.tokens.symbols[token] for token in read)


@cache
def collapsed(frames: int, tokens: int, blank: int) -> list[tuple[tuple[int, ...], np.ndarray]]:
    """What CTC reads, and all paths that are read so."""
    found: dict[tuple[int, ...], list[tuple[int, ...]]] = {}
    for path in itertools.product(range(tokens), repeat=frames):
        read = tuple(token for token, _ in itertools.groupby(path) if token != blank)
        found.setdefault(read, []).append(path)
    return [(read, np.array(paths, int)) for read, paths in found.items()]


def expected(task: Task, logp_TV: np.ndarray) -> list[tuple[float, str]]:
    """(score, text) of every word sequence, best first."""
    options, tokens = task.options, task.tokens
    silence = tokens.symbols.index(WORD_END) if WORD_END in tokens.symbols else -1
    parts: dict[tuple[tuple[str, bool], ...], list[float]] = {}
    for read, paths in collapsed(len(logp_TV), len(tokens), tokens.blank):
        sequences = list(word_sequences(task, read))
        if not sequences:
            continue
        scores = logp_TV[np.arange(len(logp_TV)), paths].sum(axis=1)
        scores = scores + options.sil_score * (paths == silence).sum(axis=1)
        for words in sequences:
            parts.setdefault(words, []).extend(scores.tolist())
    join = np.logaddexp.reduce if options.merge == "logadd" else max
    best: dict[str, float] = {}
    for words, scores in parts.items():
        text = written(task, words)
        best[text] = max(best.get(text, -math.inf), float(join(scores)) + worth(task, words))
    return sorted(((score, text) for text, score in best.items()), reverse=True)


def written(task: Task, words: Sequence[tuple[str, bool]]) -> str:
    if task.options.mode == "tokens":
        return task.tokens.decode([task.tokens.symbols.index(word) for word, _ in words])
    return " ".join(word for word, _ in words)


def word_sequences(task: Task, read: tuple[int, ...]) -> Iterator[tuple[tuple[str, bool], ...]]:
    """The words, each with whether it is known, that a sequence of tokens spells."""
    symbols = task.tokens.symbols
    if task.options.mode == "tokens":
        usable = [s == WORD_END or not (s[0] == "<" and len(s) > 2) for s in symbols]
        if all(usable[token] for token in read):
            yield tuple((symbols[token], True) for token in read)
        return
    spellings = planted(task)
    if not task.ends and task.options.mode == "lexicon":
        yield from segmented(task, read, spellings)
        return
    if not task.ends:
        yield from begun(task, read, spellings)
        return
    closing = symbols.index(WORD_END)
    if read and read[-1] != closing:
        return
    choices = []
    for is_end, group in itertools.groupby(read, lambda token: token == closing):
        if is_end:
            continue
        spelled = tuple(group)
        known = [(word, True) for word in spellings.get(task.letters((*spelled, closing)), ())]
        if not known and task.options.mode == "open":
            known = [(task.letters(spelled), False)]
        choices.append(known)
    yield from itertools.product(*choices)


def planted(task: Task) -> dict[str, list[str]]:
    """Letters to words: of the lexicon, of hotwords, and in open mode of the language model.

    Letters and not tokens: of pieces, all that make a word's letters spell it.
    """
    found: dict[str, list[str]] = {}
    entries = []
    if task.lexicon is not None:
        words, spellings = task.lexicon
        entries = [(word, task.letters(ids)) for word, ids in zip(words, spellings, strict=True)]
    there = {word for word, _ in entries}
    more = [word for phrase in task.hotwords for word in phrase.split()]
    if task.options.mode == "open" and task.lm is not None:
        more += list(task.lm.vocabulary())
    for word in dict.fromkeys(more):
        if word not in there:
            entries.append((word, f"{word}|" if task.ends else f"▁{word}"))
    for word, spelling in entries:
        if word not in found.setdefault(spelling, []):
            found[spelling].append(word)
    return found


def segmented(
    task: Task, read: tuple[int, ...], spellings: Mapping[str, Sequence[str]]
) -> Iterator[tuple[tuple[str, bool], ...]]:
    """A closed lexicon over pieces: a word ends wherever the pieces since the last make one."""
    if not read:
        yield ()
    for length in range(1, len(read) + 1):
        for word in spellings.get(task.letters(read[:length]), ()):
            for rest in segmented(task, read[length:], spellings):
                yield ((word, True), *rest)


def begun(
    task: Task, read: tuple[int, ...], spellings: Mapping[str, Sequence[str]]
) -> Iterator[tuple[tuple[str, bool], ...]]:
    """Any words over pieces: each begins with a piece that begins with ``▁``."""
    first, *parts = task.letters(read).split("▁") if read else ("",)
    strange = any(symbol[0] == "<" for symbol in (task.tokens.symbols[token] for token in read))
    if first or strange or not all(parts):
        return
    choices = []
    for part in parts:
        known = [(word, True) for word in spellings.get(f"▁{part}", ())]
        choices.append(known or [(part, False)])
    yield from itertools.product(*choices)


def worth(task: Task, words: Sequence[tuple[str, bool]]) -> float:
    """All of the score but the acoustic part."""
    options = task.options
    names = [word for word, _ in words]
    total = 0.0
    for word, known in words:
        free = options.unk_score + options.unk_letter_score * len(word)
        total += options.word_score if known else free
    if task.lm is not None:
        total += options.lm_weight * task.lm.sentence(names)
    marked = [word if known else None for word, known in words]
    for phrase, weight in task.hotwords.items():
        total += weight * occurrences(task, phrase, marked)
    return total


def occurrences(task: Task, phrase: str, words: Sequence[str | None]) -> int:
    if task.options.mode == "tokens" and task.tokens.kind == "sentencepiece":
        wanted = task.tokens.pieces(phrase)
    elif task.options.mode == "tokens":
        wanted = [WORD_END, *(s for word in phrase.split() for s in (*word, WORD_END))]
        words = [WORD_END, *words]
    else:
        wanted = phrase.split()
    places = range(len(words) - len(wanted) + 1)
    return sum(list(words[place : place + len(wanted)]) == wanted for place in places)
