"""The trie of a search: nodes, what leads to them, and the words that end in them.

Goes in: words and how they are spelled, tokens. Goes out: ``Nodes``. With a ``|``, a node is the
tokens so far. With word pieces it is the letters so far and the last piece, so a word has all the
ways in which pieces make its letters: a trie of letters is walked by pieces, each of which leads
several letters down.

Why not the spelling that SentencePiece gives: a network emits others too (``▁HE LLO`` or ``▁H E LL
O``), and all are the same word. Why the last piece is part of the node: the same piece again needs
a blank between, so whoever goes on from a node must know it. What comes next depends on the letters
alone; nodes of the same letters have the same children, and are a group.

Letters are also hashed, for words that are not on the trie: ``hash(xy) = hash(x) * power(y) +
code(y)``, modulo 2^63, so any pieces of the same letters have the same hash.
"""

# N nodes   M letter nodes   E entries   V tokens

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from w2vtool.decoder.lexicon import Lexicon, Trie, begins, build_trie, letter_ids, separator
from w2vtool.tokens import WORD_BEGIN, Tokens

ROOT = 0
_BASE = 0x9E3779B97F4A7C15  # 2^64 / golden ratio, odd
_WORD = 2**64


@dataclass(frozen=True, eq=False, kw_only=True)
class Spelling:
    """What tokens mean for the letters of words."""

    may_begin: np.ndarray  # bool [V], may be the first of a word
    may_follow: np.ndarray  # bool [V], may come later in it
    size: np.ndarray  # int32 [V], letters, without "▁" and "|"
    power: np.ndarray  # int64 [V]
    code: np.ndarray  # int64 [V]
    salt: np.ndarray  # int64 [V], makes nodes of other last tokens other nodes


@dataclass(frozen=True, eq=False, kw_only=True)
class Nodes:
    """Node 0 is the root; those of ``first_root`` and more are roots, too, after a word's end."""

    child_begin: np.ndarray  # int32 [N]
    child_end: np.ndarray  # int32 [N]
    token: np.ndarray  # int32 [N], what leads to the node; -1 for a root without "|"
    group: np.ndarray  # int32 [N], nodes of a group have the same children, in order of groups
    inner: np.ndarray  # bool [N], whether a word may go on from there
    look: np.ndarray  # float64 [N], the best word below is worth this much; 0 for roots
    depth: np.ndarray  # int32 [N], letters on the way
    spelled: np.ndarray  # int64 [N], the hash of these letters
    word_begin: np.ndarray  # int32 [N + 1], rows of node_words that end in the node
    node_words: np.ndarray  # int32, rows of words
    fan: np.ndarray  # int32 [N], candidates that a slot in the node can make on the trie, at most
    first_root: int
    landing: np.ndarray  # int32 [V], the node after a word that ends in the token
    root_child: np.ndarray  # int32 [V], the root's child, or -1


def spelling(tokens: Tokens, *, single: bool = False) -> Spelling:
    """The letters of each token. ``single``: each is a word of its own, so none spells any."""
    usable = np.zeros(len(tokens), bool)
    if not single:
        usable[list(letter_ids(tokens).values())] = True
    begins = usable
    follows = usable
    if tokens.kind == "sentencepiece":
        marks = np.array([symbol.count(WORD_BEGIN) for symbol in tokens.symbols])
        first = np.array([symbol.startswith(WORD_BEGIN) for symbol in tokens.symbols])
        begins, follows = usable & first & (marks == 1), usable & (marks == 0)
    silent = "" if tokens.kind == "sentencepiece" else tokens.symbols[separator(tokens)]
    shown = ["" if symbol == silent else symbol for symbol in tokens.symbols]
    size, power, code = _hashes(shown)
    salt = _wrapped(_mixed(2**32 + number) for number in range(len(tokens)))
    return Spelling(
        may_begin=begins, may_follow=follows, size=size, power=power, code=code, salt=salt
    )


def plant(
    entries: Lexicon,
    row_E: np.ndarray,
    value_E: np.ndarray,
    tokens: Tokens,
    spelled: Spelling,
    *,
    single: bool,
    free: bool,
) -> Nodes:
    """Nodes for entries: rows of words, what these are worth, and spellings.

    The spellings are of tokens, or of the letters that ``letters`` numbers where tokens are pieces.
    With ``free``, words off the trie may end in any token.
    """
    trie = _trie(entries, value_E)
    pieces = tokens.kind == "sentencepiece" and not single
    own_units = (spelled.size, spelled.power, spelled.code)
    units = _hashes(alphabet(tokens)) if pieces else own_units
    depth, hashed = _down(trie, *units)
    token, at, parent = _walked(trie, tokens) if pieces else _itself(trie)
    children = 1 + begins(parent, len(trie.token))
    begin, end = children[:-1][at], children[1:][at]
    own = np.diff(trie.first_word)[at]
    rows = np.repeat(trie.first_word[at], own) + _places(own)
    nodes, look = len(at), trie.score[at]
    look[ROOT] = 0.0
    root_child = np.full(len(tokens), -1)
    root_child[token[begin[ROOT] : end[ROOT]]] = np.arange(begin[ROOT], end[ROOT])
    landing = np.zeros(len(tokens), np.int64)
    copies = np.zeros(0, int)
    if separator(tokens) >= 0 and not single:
        token[ROOT] = separator(tokens)
    else:  # a root for every last token
        ends = (spelled.may_begin | spelled.may_follow) & (spelled.size > 0) & free
        ends[token[np.flatnonzero(own)]] = True
        lasts = np.flatnonzero(ends)
        landing[lasts] = nodes + np.arange(len(lasts))
        token, copies = np.append(token, lasts), np.zeros(len(lasts), int)
    every = np.append(np.arange(nodes), copies)  # the node that each is like
    begin, end = begin[every], end[every]
    below = np.append(0, np.cumsum(np.append(0, (1 + own)[1:])))  # candidates up to each node
    return Nodes(
        child_begin=begin.astype(np.int32),
        child_end=end.astype(np.int32),
        token=token.astype(np.int32),
        group=at[every].astype(np.int32),
        inner=(begin < end) | (free and pieces),
        look=look[every].astype(np.float64),
        depth=depth[at][every].astype(np.int32),
        spelled=hashed[at][every],
        word_begin=np.append(0, np.cumsum(np.append(own, copies))).astype(np.int32),
        node_words=np.asarray(row_E)[trie.words[rows]].astype(np.int32),
        fan=(below[end] - below[begin]).astype(np.int32),
        first_root=nodes,
        landing=landing.astype(np.int32),
        root_child=root_child.astype(np.int32),
    )


def alphabet(tokens: Tokens) -> list[str]:
    """The letters that pieces are made of, ``▁`` among them, in a fixed order."""
    return sorted({letter for piece in letter_ids(tokens) for letter in piece})


def letters(words: Iterable[str], tokens: Tokens) -> list[tuple[int, ...] | None]:
    """Words as numbers of letters in ``alphabet``; None for those with letters beyond it."""
    number = {letter: n for n, letter in enumerate(alphabet(tokens))}
    spelled, there = number.__getitem__, frozenset(number).issuperset
    return [tuple(map(spelled, word)) if there(word) else None for word in words]


def _trie(entries: Lexicon, value_E: np.ndarray) -> Trie:
    if entries.words:
        return build_trie(entries, value_E)
    none = np.zeros(0, np.int64)
    return Trie(np.ones(2, int), np.array([-1]), np.zeros(1), np.zeros(2, int), none)


def _itself(trie: Trie) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What ``_walked`` gives, for a trie of tokens: its nodes as they are."""
    nodes = np.arange(len(trie.token))
    return trie.token.copy(), nodes, np.repeat(nodes, np.diff(trie.first))


def _walked(trie: Trie, tokens: Tokens) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Nodes of a trie of letters that is walked by pieces.

    Gives the piece that leads to each node (-1 for the root), its letter node, and, for all but the
    root, the letter node that the piece started from; children of one start are neighbours, in
    order of pieces. Found by reading all pieces from all letter nodes at once.
    """
    usable = letter_ids(tokens)
    spelled = [path for path in letters(usable, tokens) if path is not None]
    pieces = build_trie(Lexicon(tuple(usable), tuple(spelled)))
    piece_of = np.full(len(pieces.token), -1)
    ends = np.flatnonzero(np.diff(pieces.first_word))
    piece_of[ends] = np.array(list(usable.values()))[pieces.words]
    radix = len(alphabet(tokens)) + 1
    keys = np.repeat(np.arange(len(piece_of)), np.diff(pieces.first)) * radix + pieces.token[1:]
    at = start = np.arange(len(trie.token))  # letter nodes, and from where letters were read
    read = np.zeros(len(at), int)  # where in the trie of pieces these lead
    found: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    while len(at):
        count = np.diff(trie.first)[at]
        before = np.repeat(np.arange(len(at)), count)
        at = trie.first[at][before] + _places(count)
        key = read[before] * radix + trie.token[at]
        place = np.searchsorted(keys, key).clip(max=len(keys) - 1)
        there = np.flatnonzero(keys[place] == key)
        at, start, read = at[there], start[before[there]], place[there] + 1
        whole = piece_of[read] >= 0
        found.append((piece_of[read[whole]], at[whole], start[whole]))
    token, at, begun = map(np.concatenate, zip(*found, strict=True))
    while True:
        whole_M = np.zeros(len(trie.token), bool)
        whole_M[ROOT] = whole_M[at] = True
        if (reached := whole_M[begun]).all():
            break
        token, at, begun = token[reached], at[reached], begun[reached]  # by no pieces before
    order = np.argsort(begun * len(tokens) + token)
    return np.append(-1, token[order]), np.append(ROOT, at[order]), begun[order]


def _down(
    trie: Trie, size: np.ndarray, power: np.ndarray, code: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """How many letters lead to each node of a trie, and their hash."""
    depth, hashed = np.zeros(len(trie.token), np.int64), np.zeros(len(trie.token), np.int64)
    for parents in _levels(trie.first):
        below = slice(trie.first[parents.start], trie.first[parents.stop])
        above = np.repeat(np.arange(parents.start, parents.stop), np.diff(trie.first)[parents])
        unit = trie.token[below]
        depth[below] = depth[above] + size[unit]
        hashed[below] = hashed[above] * power[unit] + code[unit]
    return depth, hashed


def _levels(first: np.ndarray) -> Iterator[slice]:
    """Nodes of one depth after another."""
    level = slice(0, 1)
    while level.start < level.stop:
        yield level
        level = slice(int(first[level.start]), int(first[level.stop]))


def _places(count: np.ndarray) -> np.ndarray:
    """``[2, 0, 3]`` to ``[0, 1, 0, 1, 2]``."""
    return np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)


def _hashes(symbols: Sequence[str]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Letters of each symbol, and what makes the hash of letters before it that of both."""
    shown = [symbol.replace(WORD_BEGIN, "") for symbol in symbols]
    codes = []
    for symbol in shown:
        code = 0
        for letter in symbol:
            code = (code * _BASE + _mixed(ord(letter))) % _WORD
        codes.append(code)
    size = np.array([len(symbol) for symbol in shown], np.int32)
    return size, _wrapped(pow(_BASE, len(symbol), _WORD) for symbol in shown), _wrapped(codes)


def _mixed(number: int) -> int:
    """A number of 64 bits that looks random. Source: splitmix64 (Steele et al. 2014)."""
    z = (number + 1) * _BASE % _WORD
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 % _WORD
    z = (z ^ z >> 27) * 0x94D049BB133111EB % _WORD
    return z ^ z >> 31


def _wrapped(numbers: Iterable[int]) -> np.ndarray:
    return np.array(list(numbers), np.uint64).astype(np.int64)
