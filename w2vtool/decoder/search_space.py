"""Everything that a search walks through, as arrays: trie, words, language model, hot phrases.

Goes in: tokens, lexicon, language model, options, hotwords. Goes out: a ``Space``, the same for
both engines. The modes differ only in what is planted:

- lexicon: the words of the lexicon, and hotwords.
- open: also the language model's words that the tokens can spell; what is still not there can be
  left to at any letter, at the cost of an unknown word.
- tokens: every token is a word of its own, so the language model is one of tokens.

Nodes: 0 is the root. Where tokens have a ``|``, it ends every word and leads to the root. Word
pieces have none: there a word ends with any piece that makes it whole, and leads to a root of this
last piece, because the same one may only follow after a blank: one more root a piece, from
``first_root`` on, with the root's children. In an open search the next word then begins with a
piece that begins with ``▁``. Words off the trie are in nodes with negative numbers: hashes of the
letters so far, plus the last token's ``salt`` (see ``planting``).
"""

# N nodes   W words   E entries

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from w2vtool.decoder import lexicon as lexicons
from w2vtool.decoder import planting
from w2vtool.decoder.arcs import Arcs, nothing, step
from w2vtool.decoder.hotwords import automaton
from w2vtool.decoder.lexicon import Lexicon, letter_ids, separator, unknown_words
from w2vtool.decoder.lm import LanguageModel, NGram
from w2vtool.decoder.ngram import UNKNOWN
from w2vtool.decoder.options import BeamOptions
from w2vtool.decoder.planting import ROOT, Nodes, Spelling
from w2vtool.errors import ConfigError, DataError, shortened
from w2vtool.text import WORD_END
from w2vtool.tokens import WORD_BEGIN, Tokens


@dataclass(frozen=True, eq=False, kw_only=True)
class Space(Nodes, Spelling):
    """See above."""

    tokens: Tokens
    separator: int  # id of "|" where it ends words, else -1
    silence: int  # id of "|" in any mode, -1 without: its frames get sil_score
    open: bool
    words: tuple[str, ...]
    lm_row: np.ndarray  # int32 [W], rows of words in the language model
    unknown_row: int
    hot_row: np.ndarray  # int32 [W], rows of words in the hot phrases
    lm: LanguageModel | None
    arcs: Arcs  # of the language model, if it has any
    hot: Arcs
    hot_start: int
    unknown_log10: float  # P(<unk>) at the start of a sentence
    unknown: tuple[str, ...]  # words of the lexicon that the language model does not know

    @property
    def by_tokens(self) -> bool:
        """Whether every token is a word of its own."""
        return not (self.may_begin | self.may_follow).any()

    def bonus(self, options: BeamOptions) -> float:
        """The most that the end of a word can bring, beside what was paid in advance."""
        if options.lm_weight < 0:
            return math.inf
        most = float(self.hot.score.max(initial=0.0)) - float(self.hot.last.min(initial=0.0))
        return most + options.word_score

    def most_letter(self, options: BeamOptions) -> float:
        """The most that the letters of one token can bring to an unknown word."""
        sizes = self.size[self.may_begin | self.may_follow]
        return float((float(options.unk_letter_score) * sizes).max(initial=-math.inf))

    def most_unknown(self, options: BeamOptions) -> float:
        """The most that an unknown word's end can bring beyond what was paid, with its last token.

        Where a separator ends words, nothing: then the last letter is not yet the end.
        """
        if self.separator >= 0:
            return 0.0
        paid = options.lm_weight * self.unknown_log10
        return max(0.0, self.bonus(options) - options.word_score - paid)

    @property
    def lift(self) -> float:
        """The most that the first token of a word brings in advance: roots have a look of 0."""
        first = self.look[self.child_begin[ROOT] : self.child_end[ROOT]]
        return float(first.max(initial=0.0))

    def is_root(self, node_N: np.ndarray) -> np.ndarray:
        """Whether nodes are between words."""
        return (node_N == ROOT) | (node_N >= self.first_root)


def build(
    tokens: Tokens,
    lexicon: Lexicon | None,
    lm: LanguageModel | None,
    options: BeamOptions,
    hotwords: Mapping[str, float],
) -> Space:
    """Plant everything.

    Raises ConfigError for a mode that lacks what it needs, DataError for hotwords that cannot be
    spelled and for a language model that knows no word of the lexicon.
    """
    _check(tokens, lexicon, options)
    phrases = _phrases(hotwords, tokens, lexicon, options)
    unknown = unknown_words(lexicon, lm) if lexicon and lm and options.mode != "tokens" else ()
    entries = _entries(tokens, lexicon, lm, options, phrases)
    words = tuple(dict.fromkeys(entries.words))
    rows = {word: row for row, word in enumerate(words)}
    lm_row, unknown_row, log10_W, unknown_log10 = _language(lm, words)
    hot_row, arcs = _hot(phrases, rows)
    gain_W = np.zeros(len(words))
    for row in np.flatnonzero(hot_row):
        gain_W[row] = step(arcs, 0, hot_row[row])[0]
    value_W = options.lm_weight * log10_W + gain_W
    row_E = np.array([rows[word] for word in entries.words], np.int32)
    single, free = options.mode == "tokens", options.mode == "open"
    spelled = planting.spelling(tokens, single=single)
    nodes = planting.plant(
        entries, row_E, value_W[row_E], tokens, spelled, single=single, free=free
    )
    hot_start = 0
    if single and WORD_END in rows and separator(tokens) >= 0:
        hot_start = step(arcs, 0, int(hot_row[rows[WORD_END]]))[1]
    return Space(
        tokens=tokens,
        separator=-1 if single else separator(tokens),
        silence=separator(tokens),
        open=free,
        words=words,
        lm_row=lm_row,
        unknown_row=unknown_row,
        hot_row=hot_row,
        lm=lm,
        arcs=lm.arcs if isinstance(lm, NGram) else nothing(),
        hot=arcs,
        hot_start=hot_start,
        unknown_log10=unknown_log10,
        unknown=unknown,
        **vars(spelled),
        **vars(nodes),
    )


def _check(tokens: Tokens, lexicon: Lexicon | None, options: BeamOptions) -> None:
    if lexicon is None and options.mode == "lexicon":
        raise ConfigError("a beam search without a lexicon", hint="give one, or mode=open")
    if lexicon is not None and options.mode == "tokens":
        raise ConfigError("a search over tokens has no use for a lexicon", hint="leave it away")
    ends = WORD_END in tokens.symbols
    if options.mode == "open" and not ends and not planting.spelling(tokens).may_begin.any():
        raise DataError(
            f"no token begins a word: no piece begins with {WORD_BEGIN!r}",
            hint="give a lexicon, or a language model of tokens (mode=tokens)",
        )


def _phrases(
    hotwords: Mapping[str, float], tokens: Tokens, lexicon: Lexicon | None, options: BeamOptions
) -> dict[tuple[str, ...], float]:
    """Hotwords as tuples of what counts as a word in this mode. DataError for what cannot be."""
    phrases: dict[tuple[str, ...], float] = {}
    problems = []
    listed = set(lexicon.words) if lexicon else set()
    for phrase, weight in hotwords.items():
        strange = " ".join(word for word in phrase.split() if word not in listed)
        wrong = lexicons.strange_letters(strange, tokens)
        if not phrase.split() or wrong:
            why = f"no token for {' '.join(wrong)}" if wrong else "no letters"
            problems.append(f"{phrase!r}: {why}")
        elif not np.isfinite(weight):
            problems.append(f"{phrase!r}: a weight of {weight}")
        elif options.mode == "tokens":
            spelled = tuple(tokens.symbols[token] for token in tokens.encode(phrase))
            begin = (WORD_END,) if tokens.kind == "letters" else ()  # not inside of other words
            phrases[begin + spelled] = weight
        else:
            phrases[tuple(phrase.split())] = weight
    if problems:
        raise DataError(
            "\n  ".join(["hotwords that cannot come out", *shortened(problems)]),
            hint="write them as the transcripts are written, in the same case",
        )
    return phrases


def _entries(
    tokens: Tokens,
    lexicon: Lexicon | None,
    lm: LanguageModel | None,
    options: BeamOptions,
    phrases: Mapping[tuple[str, ...], float],
) -> Lexicon:
    """All words to plant, with their spellings."""
    if options.mode == "tokens":
        ids = [*letter_ids(tokens).values(), separator(tokens)]
        ids = [token for token in ids if token >= 0]
        return Lexicon(tuple(tokens.symbols[i] for i in ids), tuple((i,) for i in ids))
    listed = lexicon or Lexicon((), ())
    there = set(listed.words)
    wanted = dict.fromkeys(word for phrase in phrases for word in phrase if word not in there)
    more = lexicons.from_words(wanted, tokens) if wanted else Lexicon((), ())
    listed = Lexicon(listed.words + more.words, listed.spellings + more.spellings)
    known: list[str] = []
    if options.mode == "open" and lm is not None:
        there |= set(wanted)
        known = [word for word in lm.vocabulary() if word not in there]
    if tokens.kind == "sentencepiece":
        return _by_letters(listed, known, tokens, options.mode == "open")
    known = list(filter(frozenset(letter_ids(tokens)).issuperset, known))
    more = lexicons.from_words(known, tokens) if known else Lexicon((), ())
    return Lexicon(listed.words + more.words, listed.spellings + more.spellings)


def _by_letters(listed: Lexicon, known: list[str], tokens: Tokens, free: bool) -> Lexicon:
    """Words spelled by letters, for pieces: ``▁`` first, then whatever pieces make.

    Raises DataError for spellings that an open search could not tell from parts of other words.
    """
    symbol = tokens.symbols.__getitem__
    spelled = ["".join(map(symbol, ids)) for ids in listed.spellings]
    if free:
        strange = [
            f"{word!r}: {text}"
            for word, text in zip(listed.words, spelled, strict=True)
            if not text.startswith(WORD_BEGIN) or WORD_BEGIN in text[1:] or text == WORD_BEGIN
        ]
        if strange:
            raise DataError(
                "\n  ".join(
                    ["spellings that do not begin with '▁', or not only", *shortened(strange)]
                ),
                hint="one word a line and its pieces from the first on; or --search lexicon",
            )
    spelled += [WORD_BEGIN + word for word in known]
    paths = planting.letters(spelled, tokens)
    entries = dict.fromkeys(
        (word, path) for word, path in zip([*listed.words, *known], paths, strict=True) if path
    )
    return Lexicon(tuple(word for word, _ in entries), tuple(path for _, path in entries))


def _language(
    lm: LanguageModel | None, words: tuple[str, ...]
) -> tuple[np.ndarray, int, np.ndarray, float]:
    """Rows of words in the model, the row of ``<unk>``, and their log10 at a sentence's start."""
    if lm is None:
        return np.zeros(len(words), np.int32), 0, np.zeros(len(words)), 0.0
    start = lm.start()
    if isinstance(lm, NGram):
        unknown = lm.unknown
        rows = np.array([lm.ids.get(word, unknown) for word in words], np.int32)
        log10 = lm.distribution(start)
        return rows, unknown, log10[rows], float(log10[unknown])
    log10 = np.array([lm.score(start, word)[0] for word in words])
    rows = np.arange(len(words), dtype=np.int32)
    return rows, len(words), log10, lm.score(start, UNKNOWN)[0]


def _hot(
    phrases: Mapping[tuple[str, ...], float], rows: Mapping[str, int]
) -> tuple[np.ndarray, Arcs]:
    """Rows of words among those of hot phrases (0 for all others), and the phrases."""
    hot_row = np.zeros(len(rows), np.int32)
    if not phrases:
        return hot_row, nothing()
    own = {word: n for n, word in enumerate(dict.fromkeys(w for p in phrases for w in p), 1)}
    for word, number in own.items():
        hot_row[rows[word]] = number
    numbered = {tuple(own[word] for word in phrase): value for phrase, value in phrases.items()}
    return hot_row, automaton(numbered, len(own) + 1)
