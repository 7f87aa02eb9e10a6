"""The words that a search may write, how they are spelled, and the trie that holds them.

Goes in: a lexicon file, or a list of words, and the model's tokens. Goes out: a ``Lexicon``, and a
``Trie`` of arrays. Each line of a file is ``WORD<TAB>W O R D |`` (flashlight's form) or just a
word, which is then spelled by its letters or by SentencePiece. Spellings in pieces have no ``|``,
and say which letters the word has: a search takes all pieces that make these. Several spellings of
one word, and several words of one spelling, are fine.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np

from w2vtool.decoder.lm import LanguageModel
from w2vtool.errors import DataError, shortened
from w2vtool.text import WORD_END, letter_name
from w2vtool.tokens import WORD_BEGIN, Tokens

_NONE = -1  # instead of a token's id


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
    lines = ((n, line) for n, line in enumerate(text.split("\n"), 1) if line.strip())
    lexicon = _build(lines, tokens, lambda n, line: f"{path}:{n}")
    if not lexicon.words:
        raise DataError("the lexicon has no words", where=str(path))
    return lexicon


def from_words(words: Iterable[str], tokens: Tokens) -> Lexicon:
    """Spell each word by its letters, in the order given, each once.

    Raises DataError naming all words that the tokens cannot spell.
    """
    lexicon = _build(enumerate(words), tokens, lambda n, word: f"word {word!r}")
    if not lexicon.words:
        raise DataError("the lexicon has no words")
    return lexicon


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
    token_LW = _by_levels(lexicon.spellings)
    order = _sorted(token_LW)
    token_LW = token_LW[:, order]
    node_W = np.zeros(len(order), np.int64)  # where each word is, level after level
    parents, incoming = [np.array([-1])], [np.array([-1])]
    differs_W = np.zeros(len(order), bool)  # from the word before, up to this level
    differs_W[0] = True
    nodes = 1
    for token_W in token_LW:
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
    return Trie(
        first=1 + begins(np.concatenate(parents[1:]), nodes),
        token=np.concatenate(incoming),
        score=score,
        first_word=begins(node_W, nodes),
        words=order[np.argsort(node_W, kind="stable")],
    )


def begins(owner: np.ndarray, owners: int) -> np.ndarray:
    """Where the rows of each owner begin if they are sorted by it, and where the last ones end."""
    return np.append(0, np.cumsum(np.bincount(owner, minlength=owners)))


def _by_levels(spellings: Sequence[Sequence[int]]) -> np.ndarray:
    """The first token of every spelling, the second ones and so on, -1 after the end: [L, W]."""
    size_W = np.fromiter(map(len, spellings), np.int64, len(spellings))
    token_LW = np.full((size_W.max(), len(spellings)), -1, np.int32)
    flat = np.fromiter(chain.from_iterable(spellings), np.int32, size_W.sum())
    word = np.repeat(np.arange(len(spellings)), size_W)
    token_LW[np.arange(len(flat)) - begins(word, len(spellings))[word], word] = flat
    return token_LW


def _sorted(token_LW: np.ndarray) -> np.ndarray:
    """Spellings in their order, equal ones as they come; as many tokens as fit are one number."""
    bits = (int(token_LW.max()) + 1).bit_length()
    packed = []
    for start in range(0, len(token_LW), 63 // bits):
        key_W = np.zeros(token_LW.shape[1], np.int64)
        for token_W in token_LW[start : start + 63 // bits]:
            key_W = (key_W << bits) + token_W + 1
        packed.append(key_W)
    return np.lexsort(packed[::-1])


def _build(
    lines: Iterable[tuple[int, str]], tokens: Tokens, where: Callable[[int, str], str]
) -> Lexicon:
    """A lexicon of numbered lines; ``where`` names one that is wrong."""
    ids = letter_ids(tokens)
    end = separator(tokens)
    if end >= 0:
        ids[WORD_END] = end
    number = defaultdict(lambda: _NONE, ids).__getitem__
    silent = number(WORD_BEGIN)
    entries: dict[tuple[str, tuple[int, ...]], None] = {}
    problems: list[str] = []
    strange: set[str] = set()
    for place, line in lines:
        word, *symbols = line.split() or [""]
        if not symbols and "\t" not in line:
            symbols = [*word, WORD_END] if end >= 0 else pieces(word, tokens)
        spelling = tuple(map(number, symbols))
        if _sound(spelling, end, silent):
            entries[word, spelling] = None
        else:
            problems.append(f"{where(place, line)}: {_problem(word, symbols, ids, end >= 0)}")
            strange |= {symbol for symbol in symbols if symbol not in ids}
    if problems:
        raise DataError(
            "\n  ".join(["words that cannot be spelled", *shortened(problems)]),
            hint=f"{_case(strange, ids)}the tokens' letters are "
            f"{' '.join(list(letter_ids(tokens))[:100])}",
        )
    return Lexicon(tuple(word for word, _ in entries), tuple(spelling for _, spelling in entries))


def _sound(spelling: tuple[int, ...], end: int, silent: int) -> bool:
    """Whether a spelling has letters, no other symbols, and the end of a word where it should."""
    if _NONE in spelling:
        return False
    if end < 0:
        return spelling not in ((), (silent,))
    return len(spelling) > 1 and end in spelling and spelling.index(end) + 1 == len(spelling)


def _case(strange: set[str], ids: Mapping[str, int]) -> str:
    """What to do where all that is strange is only in another case."""
    for name, change in (("upper", str.upper), ("lower", str.lower)):
        if strange and all(change(symbol) in ids for symbol in strange):
            return f"write the words in {name} case; "
    return ""


def _problem(word: str, symbols: list[str], ids: Mapping[str, int], closing: bool) -> str:
    """What is wrong with a spelling that is not sound; ``closing``: it must end with ``|``."""
    if not symbols:
        return f"no spelling after {word!r}"
    if symbols == [WORD_END if closing else WORD_BEGIN]:
        return f"the spelling of {word!r} has no letters"
    if closing and symbols[-1] != WORD_END:
        return f"the spelling of {word!r} does not end with {WORD_END!r}"
    if closing and WORD_END in symbols[:-1]:
        return f"{WORD_END!r} inside of {word!r}"
    unknown = [symbol for symbol in dict.fromkeys(symbols) if symbol not in ids]
    shown = ", ".join(letter_name(s) if len(s) == 1 else repr(s) for s in unknown)
    return f"no token for {shown} of {word!r}"
