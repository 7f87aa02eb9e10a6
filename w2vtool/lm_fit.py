"""Whether a language model, a lexicon and a vocabulary belong together.

Goes in: all three, as they were opened. Goes out: nothing, or a DataError with the reason and what
to do: another case, a model of letters where one of words is meant, too many unknown words.

Why so strict: a search with a model that knows no word runs, and is worse than none; nothing else
would show it.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Collection

from w2vtool.decoder.lexicon import Lexicon, letter_ids, separator
from w2vtool.decoder.ngram import LanguageModel
from w2vtool.errors import DataError
from w2vtool.text import WORD_END, letter_name
from w2vtool.tokens import WORD_BEGIN, Tokens

log = logging.getLogger(__name__)

ENOUGH = 0.9  # of the words that one has, the other must know
_CASES: tuple[tuple[str, str, Callable[[str], str]], ...] = (
    ("lower", "upper", str.upper),
    ("upper", "lower", str.lower),
)
_SHOWN = 5
FEW = 0.5  # of the tokens, where the rest may be pieces that no text needs
_TRAIN = "train one of the model's tokens: w2vtool lm train --tokens CHECKPOINT"


def check(
    tokens: Tokens, lexicon: Lexicon | None, lm: LanguageModel, search: str, *, refuse: bool = True
) -> None:
    """Raise DataError where under 90 % fit; with ``refuse=False`` a warning is logged instead.

    Compared are: in a search over tokens, letters with the model's words, or the model's words with
    pieces; with a lexicon, its words with the model's; else, the model's words with what the tokens
    can spell.
    """
    try:
        vocabulary = lm.vocabulary()
    except DataError:  # a KenLM binary without its words: it can only be asked
        if lexicon is None:
            return
        vocabulary = ()
    if search == "tokens":
        found = _tokens(tokens, lm, vocabulary)
    elif lexicon is not None:
        found = _lexicon(tokens, lexicon, lm, vocabulary)
    else:
        found = _letters(tokens, vocabulary)
    if found is None:
        return
    what, hint = found
    if refuse:
        raise DataError(what, where=str(lm.path), hint=hint)
    log.warning("%s: %s (%s)", lm.path, what, hint)


Finding = tuple[str, str] | None  # what is wrong, and what to do


def _tokens(tokens: Tokens, lm: LanguageModel, vocabulary: Collection[str]) -> Finding:
    if tokens.kind == "sentencepiece" and vocabulary:
        return _pieces(tokens, vocabulary)
    wanted = [*letter_ids(tokens), *([WORD_END] if separator(tokens) >= 0 else [])]
    known = [token for token in wanted if lm.knows(token)]
    # many pieces are there for rare letters only, and in no text that a model was trained on
    if len(known) >= (ENOUGH if separator(tokens) >= 0 else FEW) * len(wanted):
        return None
    missing = [token for token in wanted if not lm.knows(token)]
    what = f"it knows {len(known)} of the {len(wanted)} tokens, not {_some(missing)}"
    for theirs, ours, change in _CASES:
        changed = {change(word) for word in vocabulary}
        if sum(token in changed for token in wanted) >= ENOUGH * len(wanted):
            return _case(theirs, ours, what)
    if _begun(vocabulary):
        return f"a language model of word pieces, and the tokens are letters: {what}", _TRAIN
    if vocabulary and _units(tokens, vocabulary) < ENOUGH:
        return _of_words(what)
    hint = f"{_TRAIN}; if its texts do without those letters, lm_check=warn"
    return f"the language model does not fit the tokens: {what}", hint


def _pieces(tokens: Tokens, vocabulary: Collection[str]) -> Finding:
    """Pieces of the model's words that are the network's: the model needs not know them all."""
    ids = letter_ids(tokens)
    strange = [word for word in vocabulary if word not in ids]
    known = len(vocabulary) - len(strange)
    what = f"{known} of its {len(vocabulary)} words are tokens, not {_some(strange)}"
    if not _begun(vocabulary):
        if all(len(word) == 1 for word in vocabulary):
            return "a language model of letters, and the tokens are word pieces", _TRAIN
        return _of_words(what)
    if known >= ENOUGH * len(vocabulary):
        return None
    for theirs, ours, change in _CASES:
        if sum(change(word) in ids for word in vocabulary) >= ENOUGH * len(vocabulary):
            return _case(theirs, ours, what)
    return f"the language model is one of other word pieces: {what}", _TRAIN


def _lexicon(
    tokens: Tokens, lexicon: Lexicon, lm: LanguageModel, vocabulary: Collection[str]
) -> Finding:
    words = list(dict.fromkeys(lexicon.words))
    missing = [word for word in words if not lm.knows(word)]
    if missing:
        log.info("%s: unknown to it: %d of the lexicon's words", lm.path, len(missing))
    known = len(words) - len(missing)
    if known >= ENOUGH * len(words):
        return None
    what = f"the language model knows {known} of the lexicon's {len(words)} words"
    if not known:
        what = f"the language model knows none of the lexicon's {len(words)} words"
    what += f", not {_some(missing)}"
    for theirs, ours, change in _CASES:
        changed = {change(word) for word in vocabulary}
        if sum(word in changed for word in words) >= ENOUGH * len(words):
            return _case(theirs, ours, what)
    if vocabulary and _units(tokens, vocabulary) >= ENOUGH:
        return _of_units(what)
    # a search with a model of none of its words is refused, whatever lm_check says
    return what, "are both of the same language and spelling?" + " else lm_check=warn" * bool(known)


def _letters(tokens: Tokens, vocabulary: Collection[str]) -> Finding:
    letters = {letter for token in letter_ids(tokens) for letter in token}
    if tokens.kind != "sentencepiece":
        letters = set(letter_ids(tokens))
    if not vocabulary:
        return "the language model knows no words", "train it on text: w2vtool lm train"
    if len(vocabulary) > 1 and _units(tokens, vocabulary) >= ENOUGH:
        return _of_units(f"its words are {_some(list(vocabulary))}")
    strange = [word for word in vocabulary if not letters.issuperset(word)]
    known = len(vocabulary) - len(strange)
    if known >= ENOUGH * len(vocabulary):
        return None
    what = f"the tokens can spell {known} of the language model's {len(vocabulary)} words"
    if not known:
        what = f"the tokens can spell none of the language model's {len(vocabulary)} words"
    what += f", not {_some(strange)}"
    for theirs, ours, change in _CASES:
        spelled = sum(letters.issuperset(change(word)) for word in vocabulary)
        if spelled >= ENOUGH * len(vocabulary):
            return _case(theirs, ours, what)
    lacking = Counter(letter for word in strange for letter in set(word) - letters)
    shown = ", ".join(letter_name(letter) for letter, _ in lacking.most_common(_SHOWN))
    return what, f"there is no token for {shown}; give a lexicon, or lm_check=warn"


def _units(tokens: Tokens, vocabulary: Collection[str]) -> float:
    """The share of a model's words that are tokens, in any case; 1 if some can be nothing else."""
    if _begun(vocabulary) or WORD_END in vocabulary:
        return 1.0
    if tokens.kind == "sentencepiece" and any(len(word) > 1 for word in vocabulary):
        return 0.0  # short words look like pieces from within words
    symbols = {WORD_END, *(symbol.upper() for symbol in tokens.symbols)}
    return sum(word.upper() in symbols for word in vocabulary) / max(1, len(vocabulary))


def _begun(vocabulary: Collection[str]) -> bool:
    """Whether words of a model are pieces that begin words."""
    return any(word.startswith(WORD_BEGIN) for word in vocabulary)


def _of_units(what: str) -> tuple[str, str]:
    return (
        f"a language model of letters or pieces, given as one of words: {what}",
        "--search tokens, without a lexicon; or give a model of words",
    )


def _of_words(what: str) -> tuple[str, str]:
    return (
        f"a language model of words, and the search is over tokens: {what}",
        f"--search open; or {_TRAIN}",
    )


def _case(theirs: str, ours: str, what: str) -> tuple[str, str]:
    return (
        f"the language model is in {theirs} case, the transcripts are in {ours} case: {what}",
        f"train it with: w2vtool lm train --case {ours}",
    )


def _some(words: list[str]) -> str:
    shown = ", ".join(repr(word) for word in words[:_SHOWN])
    return f"{shown}, …" if len(words) > _SHOWN else shown
