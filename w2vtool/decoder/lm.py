"""Word n-gram language models, read and queried through KenLM.

Goes in: the path of an ARPA file (``.arpa``, ``.arpa.gz``) or of a KenLM binary. Goes out: a
``LanguageModel`` that scores one word after another; all scores are log10, as in the file.

A state stands for as many past words as the model can still use. States are hashable and equal when
their words are, so searches may merge hypotheses that share one.
"""

from __future__ import annotations

import gzip
import logging
import os
import re
import shutil
import sys
import tempfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from kenlm import Config, Model, State

from w2vtool.errors import DataError

log = logging.getLogger(__name__)

_BINARY = b"mmap lm "
_GZIP = b"\x1f\x8b"
_HINT = "give an ARPA file (.arpa, .arpa.gz) or a KenLM binary, as made by: w2vtool lm train"
_NO_UNK = -99.0  # KenLM puts -100 where the file has no <unk>


class LanguageModel:
    """A word n-gram model. Words that it does not know are scored as ``<unk>``."""

    def __init__(self, model: Model, path: Path) -> None:
        self._model = model
        self.path = path
        self.order: int = model.order

    def start(self) -> State:
        """The state at the begin of a sentence."""
        state: State = State()
        self._model.BeginSentenceWrite(state)
        return state

    def score(self, state: State, word: str) -> tuple[float, State]:
        """log10 P(word | state), and the state after the word."""
        following = State()
        return self._model.BaseScore(state, word, following), following

    def final(self, state: State) -> float:
        """log10 P(end of sentence | state)."""
        return float(self._model.BaseScore(state, "</s>", State()))

    def knows(self, word: str) -> bool:
        """Whether the word has a probability of its own."""
        return word in self._model

    def sentence(self, words: Iterable[str]) -> float:
        """log10 P of a whole sentence, its end included."""
        total, state = 0.0, self.start()
        for word in words:
            score, state = self.score(state, word)
            total += score
        return total + self.final(state)


def open_lm(path: str | Path) -> LanguageModel:
    """Open a language model.

    Raises DataError for a missing file and for one that is no language model. What KenLM writes to
    stderr is dropped: while a file loads, nothing else in the process can write there either.
    """
    path = Path(path)
    kind = _kind(path)
    if kind != "gzip":
        return _load(path, path)
    # unpacked here, because not every build of KenLM reads gzip
    with tempfile.TemporaryDirectory(prefix="w2vtool-lm-", ignore_cleanup_errors=True) as folder:
        unpacked = Path(folder) / "lm.arpa"
        try:
            with gzip.open(path) as packed, unpacked.open("wb") as file:
                shutil.copyfileobj(packed, file, 1 << 20)
        except (OSError, EOFError, zlib.error) as error:
            raise DataError(
                f"cannot be unpacked: {error}", where=str(path), hint="copy the file again"
            ) from None
        _kind(unpacked, shown=path)
        return _load(unpacked, path)


def _kind(path: Path, shown: Path | None = None) -> str:
    """``binary``, ``gzip`` or ``arpa`` by the first bytes; KenLM reads anything else as garbage."""
    where = str(shown or path)
    try:
        with path.open("rb") as file:
            head = file.read(4096)
    except FileNotFoundError:
        raise DataError("no such language model", where=where, hint=_HINT) from None
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror}", where=where, hint=_HINT) from None
    if head.startswith(_BINARY):
        return "binary"
    if head.startswith(_GZIP) and shown is None:
        return "gzip"
    if head.lstrip().startswith(b"\\data\\"):
        return "arpa"
    what = f"begins with {head[:20]!r}" if head else "the file is empty"
    raise DataError(f"not a language model: {what}", where=where, hint=_HINT)


def _load(path: Path, shown: Path) -> LanguageModel:
    config = Config()
    config.show_progress = False
    try:
        with _quiet_stderr():
            model = Model(str(path), config)
    except (OSError, ValueError) as error:  # ValueError: bytes that are no text in its message
        raise DataError(
            f"not a language model that KenLM can read: {_reason(error)}",
            where=str(shown),
            hint="is it complete? KenLM reads n-gram orders 2 to 6",
        ) from None
    lm = LanguageModel(model, shown)
    if lm.score(lm.start(), "<unk>")[0] < _NO_UNK:
        log.warning("%s has no <unk>: a word it does not know costs 100 in log10", shown)
    return lm


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
