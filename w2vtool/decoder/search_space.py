"""Everything that a search walks through, as arrays: trie, words, language model, hot phrases.

Goes in: tokens, lexicon, language model, options, hotwords. Goes out: a ``Space``, the same for
both engines. The modes differ only in what is planted:

- lexicon: the words of the lexicon, and hotwords.
- open: also the language model's words that the tokens can spell; what is still not there can be
  left to at any letter, at the cost of an unknown word.
- tokens: every token is a word of its own, so the language model is one of tokens.

Nodes: 0 is the root. Where tokens have a ``|``, it ends every word and leads to the root. Where
they have none, the end of a word leads to a root of its last token, because the same token may only
follow after a blank: one more root a token, from ``first_root`` on, with the root's children. Words
off the trie are in nodes with negative numbers, hashes of the letters so far.
"""

# N nodes   W words   V tokens

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from w2vtool.decoder import hotwords as hot
from w2vtool.decoder import lexicon as lexicons
from w2vtool.decoder.hotwords import Arcs
from w2vtool.decoder.lexicon import Lexicon, letter_ids, separator, unknown_words
from w2vtool.decoder.lm import LanguageModel, NGram
from w2vtool.decoder.ngram import UNKNOWN
from w2vtool.decoder.options import BeamOptions
from w2vtool.errors import ConfigError, DataError
from w2vtool.text import WORD_END
from w2vtool.tokens import Tokens

ROOT = 0
_SHOWN = 20


@dataclass(frozen=True, eq=False)
class Space:
    """See above. Children of a node: ``child_begin[n] <= child < child_end[n]``; looks are nats."""

    tokens: Tokens
    separator: int  # id of "|" where it ends words, else -1
    silence: int  # id of "|" in any mode, -1 without: its frames get sil_score
    open: bool
    words: tuple[str, ...]
    child_begin: np.ndarray  # int32 [N]
    child_end: np.ndarray  # int32 [N]
    token: np.ndarray  # int32 [N], what leads to the node; -1 for a root without "|"
    look: np.ndarray  # float64 [N], the best word below is worth this much; 0 for roots
    depth: np.ndarray  # int32 [N], letters on the way
    word_begin: np.ndarray  # int32 [N + 1], rows of node_words that end in the node
    node_words: np.ndarray  # int32, rows of words
    fan: np.ndarray  # int32 [N], candidates that a slot in the node can make on the trie, at most
    first_root: int
    landing: np.ndarray  # int32 [V], the node after a word that ends in the token
    root_child: np.ndarray  # int32 [V], the root's child, or -1
    letters: np.ndarray  # int32, tokens that unknown words are made of
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
        return self.separator < 0 and len(self.letters) == 0

    def bonus(self, options: BeamOptions) -> float:
        """The most that the end of a word can bring, beside what was paid in advance."""
        if options.lm_weight < 0:
            return math.inf
        most = float(self.hot.score.max(initial=0.0)) - float(self.hot.last.min(initial=0.0))
        return most + options.word_score

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
    lexicon = _entries(tokens, lexicon, lm, options, phrases)
    words = tuple(dict.fromkeys(lexicon.words))
    rows = {word: row for row, word in enumerate(words)}
    lm_row, unknown_row, log10_W, unknown_log10 = _language(lm, words)
    hot_row, arcs = _hot(phrases, rows)
    gain_W = np.array([hot.step(arcs, 0, row)[0] if row else 0.0 for row in hot_row.tolist()])
    value_W = options.lm_weight * log10_W + gain_W
    entry_rows = np.array([rows[word] for word in lexicon.words], np.int32)
    free = [] if options.mode == "tokens" else sorted(letter_ids(tokens).values())
    hot_start = 0
    if options.mode == "tokens" and WORD_END in rows:
        hot_start = hot.step(arcs, 0, int(hot_row[rows[WORD_END]]))[1]
    return Space(
        tokens=tokens,
        separator=-1 if options.mode == "tokens" else separator(tokens),
        silence=separator(tokens),
        open=options.mode == "open",
        words=words,
        letters=np.array(free, np.int32),
        lm_row=lm_row,
        unknown_row=unknown_row,
        hot_row=hot_row,
        lm=lm,
        arcs=_arcs(lm),
        hot=arcs,
        hot_start=hot_start,
        unknown_log10=unknown_log10,
        unknown=unknown,
        **_plant(lexicon, entry_rows, value_W[entry_rows], tokens, options.mode == "tokens"),
    )


def _check(tokens: Tokens, lexicon: Lexicon | None, options: BeamOptions) -> None:
    if lexicon is None and options.mode == "lexicon":
        raise ConfigError("a beam search without a lexicon", hint="give one, or mode=open")
    if lexicon is not None and options.mode == "tokens":
        raise ConfigError("a search over tokens has no use for a lexicon", hint="leave it away")
    if options.mode == "open" and separator(tokens) < 0:
        raise DataError(
            f"the tokens have no word separator {WORD_END!r}, which the open search needs",
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
        wrong = tokens.unknown(strange) if strange else []
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
        more = [f"and {len(problems) - _SHOWN} more"] if len(problems) > _SHOWN else []
        raise DataError(
            "\n  ".join(["hotwords that cannot come out", *problems[:_SHOWN], *more]),
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
    wanted = dict.fromkeys(word for phrase in phrases for word in phrase)
    if options.mode == "open" and lm is not None:
        letters = letter_ids(tokens)
        wanted |= dict.fromkeys(w for w in lm.vocabulary() if all(c in letters for c in w))
    added = [word for word in wanted if word not in there]
    if not added:
        return listed
    more = lexicons.from_words(added, tokens)
    return Lexicon(listed.words + more.words, listed.spellings + more.spellings)


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


def _arcs(lm: LanguageModel | None) -> Arcs:
    if not isinstance(lm, NGram):
        return hot.nothing()
    return Arcs(lm.first, lm.word, lm.log10, lm.target, lm.backoff, lm.back, lm.last)


def _hot(
    phrases: Mapping[tuple[str, ...], float], rows: Mapping[str, int]
) -> tuple[np.ndarray, Arcs]:
    """Rows of words among those of hot phrases (0 for all others), and the phrases."""
    hot_row = np.zeros(len(rows), np.int32)
    if not phrases:
        return hot_row, hot.nothing()
    own = {word: n for n, word in enumerate(dict.fromkeys(w for p in phrases for w in p), 1)}
    for word, number in own.items():
        hot_row[rows[word]] = number
    numbered = {tuple(own[word] for word in phrase): value for phrase, value in phrases.items()}
    return hot_row, hot.automaton(numbered, len(own) + 1)


def _plant(
    lexicon: Lexicon, row_E: np.ndarray, value_E: np.ndarray, tokens: Tokens, single: bool
) -> dict[str, Any]:
    """The trie's part of a Space; ``row_E`` and ``value_E`` are of the lexicon's entries."""
    if lexicon.words:
        trie = lexicons.build_trie(lexicon, value_E)
    else:
        none = np.zeros(0, np.int64)
        trie = lexicons.Trie(np.ones(2, int), np.array([-1]), np.zeros(1), np.zeros(2, int), none)
    begin, end = trie.first[:-1], trie.first[1:]
    nodes = len(trie.token)
    token, look = trie.token.copy(), trie.score.copy()
    look[ROOT] = 0.0
    depth = np.zeros(nodes, np.int32)
    level = slice(0, 1)
    while level.start < level.stop:
        level = slice(begin[level.start], end[level.stop - 1])
        depth[level.start :] += 1
    own = np.diff(trie.first_word)
    fan = np.array([0]) if nodes == 1 else np.add.reduceat(np.append(1 + own, 0), begin)
    fan = np.where(begin < end, fan, 0)
    root_child = np.full(len(tokens), -1)
    root_child[token[begin[ROOT] : end[ROOT]]] = np.arange(begin[ROOT], end[ROOT])
    landing = np.zeros(len(tokens), np.int64)
    if separator(tokens) >= 0 and not single:
        token[ROOT] = separator(tokens)
    else:  # a root for every last token
        lasts = np.unique(token[np.flatnonzero(own)])
        landing[lasts] = nodes + np.arange(len(lasts))
        copies = np.zeros(len(lasts), int)
        token, look = np.append(token, lasts), np.append(look, copies)
        begin, end = np.append(begin, begin[copies]), np.append(end, end[copies])
        fan, depth = np.append(fan, fan[copies]), np.append(depth, copies)
        own = np.append(own, copies)
    return {
        "child_begin": begin.astype(np.int32),
        "child_end": end.astype(np.int32),
        "token": token.astype(np.int32),
        "look": look.astype(np.float64),
        "depth": depth.astype(np.int32),
        "word_begin": np.append(0, np.cumsum(own)).astype(np.int32),
        "node_words": np.asarray(row_E)[trie.words].astype(np.int32),
        "fan": fan.astype(np.int32),
        "first_root": nodes,
        "landing": landing.astype(np.int32),
        "root_child": root_child.astype(np.int32),
    }
