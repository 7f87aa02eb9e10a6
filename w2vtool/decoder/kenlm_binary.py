"""Language models in KenLM's binary form, asked word by word through the ``kenlm`` package.

Goes in: the path of a binary. Goes out: a ``KenLM``. What it scores cannot be listed, so it becomes
no arrays: the torch search asks it one pair after another, on the CPU; the numba search cannot.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from w2vtool.decoder.ngram import BEGIN, END, UNKNOWN, LanguageModel
from w2vtool.errors import DataError

_VOCABULARY = b"<unk>\0"  # the first word; all of them end the file, each closed by a NUL


class KenLM(LanguageModel):
    """A language model that KenLM holds."""

    def __init__(self, model: Any, path: Path) -> None:
        from kenlm import State

        self._model, self._state = model, State
        self.path = path
        self.order: int = model.order

    def start(self) -> Any:
        """See LanguageModel."""
        state = self._state()
        self._model.BeginSentenceWrite(state)
        return state

    def score(self, state: Any, word: str) -> tuple[float, Any]:
        """See LanguageModel."""
        following = self._state()
        return float(self._model.BaseScore(state, word, following)), following

    def final(self, state: Any) -> float:
        """See LanguageModel."""
        return float(self._model.BaseScore(state, END, self._state()))

    def knows(self, word: str) -> bool:
        """See LanguageModel."""
        return word in self._model

    def vocabulary(self) -> Sequence[str]:
        """See LanguageModel. DataError for a file that was built without its words."""
        content = self.path.read_bytes()
        begin = content.rfind(_VOCABULARY)
        words = content[begin:].removesuffix(b"\0").split(b"\0") if begin >= 0 else []
        try:
            found = [word.decode() for word in words]
        except UnicodeDecodeError:
            found = []
        if not found or not all(self.knows(word) for word in found[1:]):
            raise DataError(
                "the words of this KenLM binary cannot be listed",
                where=str(self.path),
                hint="give its ARPA file, or a lexicon",
            )
        return [word for word in found if word not in (UNKNOWN, BEGIN, END)]


def read(path: Path) -> KenLM:
    """Open a binary. Raises DataError.

    What KenLM writes to stderr is dropped: while a file loads, nothing else in the process can
    write there either.
    """
    try:
        from kenlm import Config, Model
    except ImportError:
        raise DataError(
            "a KenLM binary, and the kenlm package is not installed",
            where=str(path),
            hint="give the ARPA file instead, or: pip install ufal-kenlm",
        ) from None
    config = Config()
    config.show_progress = False
    try:
        with _quiet_stderr():
            return KenLM(Model(str(path), config), path)
    except (OSError, ValueError) as error:  # ValueError: bytes that are no text in its message
        raise DataError(
            f"not a language model that KenLM can read: {_reason(error)}",
            where=str(path),
            hint="give its ARPA file; KenLM as packaged reads n-gram orders 2 to 6",
        ) from None


def _reason(error: Exception) -> str:
    """What KenLM says about the file, without what it says about its own source."""
    if isinstance(error, UnicodeDecodeError):  # it quotes bytes of the file
        return "damaged"
    text = " ".join(str(error).split()).removesuffix(")")
    fact = re.search(r"threw \w+(?: because `.*?')?\. *(.+)", text)
    return (fact.group(1) if fact else text.partition("(")[2] or text)[:200]


@contextmanager
def _quiet_stderr() -> Iterator[None]:
    """Send to nowhere what C++ code writes to file descriptor 2."""
    sys.stderr.flush()
    try:
        saved = os.dup(2)
    except OSError:  # closed, as in a daemon
        yield
        return
    try:
        with Path(os.devnull).open("wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)
