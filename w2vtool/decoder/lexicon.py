"""The words that a search may write, how they are spelled, and the trie that holds them.

Goes in: a lexicon file, or a list of words, and the model's tokens. Goes out: a ``Lexicon``, and a
``Trie`` of arrays. Each line of a file is ``WORD<TAB>W O R D |`` (flashlight's form) or just a
word, which is then spelled by its letters or by SentencePiece. Spellings in pieces have no ``|``,
and say which letters the word has: a search takes all pieces that make these. Several spellings of
one word, and several words of one spelling, are fine.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from w2vtool.decoder.lm import LanguageModel
from w2vtool.errors import DataError, shortened
from w2vtool.text import WORD_END, letter_name
from w2vtool.tokens import WORD_BEGIN, Tokens


class Lexicon(NamedTuple):
    """Entries in file order: a word, and the token ids of a spelling that ends in ``|``."""

    words: tuple[str, ...]
    spellings: tuple[tuple[int, ...], ...]


class Trie(NamedTuple):
    """Spellings as a tree. Node 0 is the root, and the children of a node are neighbours.

    Children of node ``n``: ``first[n] <= child < first[n + 1]``. ``token`` is what leads to a node
    (-1 for the root), ``score`` the best word score at or below it. The words whose spelling ends
    in ``n`` are ``words[first_word[n]:first_word[n + 1]]``, rows of the lexicon.
    """

    first: np.ndarray  # int64 [N + 1]
    token: np.ndarray  # int64 [N]
    score: np.ndarray  # float64 [N]
    first_word: np.ndarray  # int64 [N + 1]
    words: np.ndarray  # int64 [W]


def separator(tokens: Tokens) -> int:
    """The id of ``|``, which ends every word; -1 for word pieces, where it is a letter."""
    if tokens.kind == "sentencepiece" or WORD_END not in tokens.symbols:
        return -1
    return tokens.symbols.index(WORD_END)


def letter_ids(tokens: Tokens) -> dict[str, int]:
    """Symbols that words are made of: neither blank, nor ``|``, nor specials like ``<unk>``."""
    closing = separator(tokens)
    return {
        symbol: index
        for index, symbol in enumerate(tokens.symbols)
        if index != tokens.blank
        and index != closing
        and not (len(symbol) > 2 and symbol[0] == "<" and symbol[-1] == ">")
    }


def read(path: str | Path, tokens: Tokens) -> Lexicon:
    """Read a lexicon file. Every bad line is named in the DataError; equal lines count once."""
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise DataError("no such lexicon", where=str(path)) from None
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror}", where=str(path)) from None
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise DataError("not UTF-8 text", where=f"{path}:{line}") from None
    rows = [(f"{path}:{n}", line) for n, line in enumerate(text.split("\n"), 1) if line.strip()]
    if not rows:
        raise DataError("the lexicon has no words", where=str(path))
    return _build(rows, tokens)


def from_words(words: Iterable[str], tokens: Tokens) -> Lexicon:
    """Spell each word by its letters, in the order given, each once.

    Raises DataError naming all words that the tokens cannot spell.
    """
    lexicon = _build([(f"word {word!r}", word) for word in words], tokens)
    if not lexicon.words:
        raise DataError("the lexicon has no words")
    return lexicon


def write(lexicon: Lexicon, path: str | Path, tokens: Tokens) -> None:
    """Write ``WORD<TAB>W O R D |`` lines, which ``read`` reads back to the same lexicon."""
    rows = zip(lexicon.words, lexicon.spellings, strict=True)
    text = "".join(f"{w}\t{' '.join(tokens.symbols[i] for i in ids)}\n" for w, ids in rows)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.part")
    temporary.write_text(text, encoding="utf-8", newline="\n")
    temporary.replace(path)


def unknown_words(lexicon: Lexicon, lm: LanguageModel) -> tuple[str, ...]:
    """Words of the lexicon that the language model only knows as ``<unk>``.

    Raises DataError if these are all of them: then the two do not belong together.
    """
    words = tuple(dict.fromkeys(lexicon.words))
    unknown = tuple(word for word in words if not lm.knows(word))
    if words and len(unknown) == len(words):
        raise DataError(
            f"the language model knows none of the lexicon's {len(words)} words, like {words[0]!r}",
            where=str(lm.path),
            hint="do both write the same way, in upper or lower case?",
        )
    return unknown


def pieces(word: str, tokens: Tokens) -> list[str]:
    """How SentencePiece spells a word; the fewest pieces where its model is not at hand.

    Letters that no piece has stand alone.
    """
    if tokens.model:
        return tokens.pieces(word)
    usable, text = letter_ids(tokens), WORD_BEGIN + word
    best: list[list[str] | None] = [[]]
    for end in range(1, len(text) + 1):
        ways = [
            [*before, text[begin:end]]
            for begin in range(end)
            if (before := best[begin]) is not None and text[begin:end] in usable
        ]
        best.append(min(ways, key=len, default=None))
    return best[-1] or list(text)


def strange_letters(text: str, tokens: Tokens) -> list[str]:
    """Letters of words that no token, and no pieces, can spell, in code point order."""
    if tokens.kind != "sentencepiece":
        return tokens.unknown(text) if text else []
    usable = letter_ids(tokens)
    found = {
        letter
        for word in text.split()
        for piece in pieces(word, tokens)
        if piece not in usable
        for letter in piece
    }
    return sorted(found - {WORD_BEGIN})


def build_trie(lexicon: Lexicon, score_W: np.ndarray | None = None) -> Trie:
    """Arrange a lexicon as a trie whose nodes know the best score of a word below (or 0).

    Numbered level by level over the sorted spellings, so that the children of a node have
    consecutive numbers and a level is a few array operations.
    """
    order = sorted(range(len(lexicon.words)), key=lambda row: lexicon.spellings[row])
    depth = max(map(len, lexicon.spellings))
    token_WL = np.full((len(order), depth), -1)
    for row, entry in enumerate(order):
        token_WL[row, : len(lexicon.spellings[entry])] = lexicon.spellings[entry]
    node_W = np.zeros(len(order), np.int64)  # where each word is, level after level
    parents, incoming = [np.array([-1])], [np.array([-1])]
    differs_W = np.zeros(len(order), bool)  # from the word before, up to this level
    differs_W[0] = True
    nodes = 1
    for level in range(depth):
        token_W = token_WL[:, level]
        differs_W[1:] |= token_W[1:] != token_W[:-1]
        here = token_W >= 0
        new = differs_W & here
        parents.append(node_W[new])
        incoming.append(token_W[new])
        node_W[here] = nodes - 1 + np.cumsum(new)[here]
        nodes += int(new.sum())
    score = np.zeros(nodes)
    if score_W is not None:
        score = np.full(nodes, -np.inf)
        np.maximum.at(score, node_W, np.asarray(score_W)[order])
        level_end = nodes
        for above in reversed(parents):  # the children of a level's nodes are the next level
            below = slice(level_end - len(above), level_end)
            level_end = below.start
            if level_end:
                np.maximum.at(score, above, score[below])
    parent = np.concatenate(parents)
    return Trie(
        first=1 + np.searchsorted(parent[1:], np.arange(nodes + 1)),
        token=np.concatenate(incoming),
        score=score,
        first_word=np.searchsorted(np.sort(node_W), np.arange(nodes + 1)),
        words=np.array(order)[np.argsort(node_W, kind="stable")],
    )


def _build(rows: Iterable[tuple[str, str]], tokens: Tokens) -> Lexicon:
    ids = letter_ids(tokens)
    closing = separator(tokens) >= 0
    if closing:
        ids[WORD_END] = separator(tokens)
    entries: dict[tuple[str, tuple[int, ...]], None] = {}
    problems: list[str] = []
    strange: set[str] = set()
    for where, line in rows:
        word, symbols = _split(line, tokens)
        problem = _problem(word, symbols, ids, closing)
        if problem:
            problems.append(f"{where}: {problem}")
            strange |= {symbol for symbol in symbols if symbol not in ids}
        else:
            entries[word, tuple(ids[symbol] for symbol in symbols)] = None
    if problems:
        raise DataError(
            "\n  ".join(["words that cannot be spelled", *shortened(problems)]),
            hint=f"{_case(strange, ids)}the tokens' letters are "
            f"{' '.join(list(letter_ids(tokens))[:100])}",
        )
    return Lexicon(tuple(word for word, _ in entries), tuple(spelling for _, spelling in entries))


def _case(strange: set[str], ids: Mapping[str, int]) -> str:
    """What to do where all that is strange is only in another case."""
    for name, change in (("upper", str.upper), ("lower", str.lower)):
        if strange and all(change(symbol) in ids for symbol in strange):
            return f"write the words in {name} case; "
    return ""


def _split(line: str, tokens: Tokens) -> tuple[str, list[str]]:
    """A word and the symbols that spell it: those of the line, else its letters or pieces."""
    word, *symbols = line.split() or [""]
    if symbols or "\t" in line.rstrip("\r\n"):
        return word, symbols
    if tokens.kind == "sentencepiece":
        return word, pieces(word, tokens)
    return word, [*word, WORD_END]


def _problem(word: str, symbols: list[str], ids: dict[str, int], closing: bool) -> str:
    """What is wrong with a line; empty if nothing is. ``closing``: spellings end with ``|``."""
    if not symbols:
        return f"no spelling after {word!r}"
    if symbols == [WORD_END if closing else WORD_BEGIN]:
        return f"the spelling of {word!r} has no letters"
    if closing and symbols[-1] != WORD_END:
        return f"the spelling of {word!r} does not end with {WORD_END!r}"
    if closing and WORD_END in symbols[:-1]:
        return f"{WORD_END!r} inside of {word!r}"
    unknown = [symbol for symbol in dict.fromkeys(symbols) if symbol not in ids]
    if unknown:
        shown = ", ".join(letter_name(s) if len(s) == 1 else repr(s) for s in unknown)
        return f"no token for {shown} of {word!r}"
    return ""
