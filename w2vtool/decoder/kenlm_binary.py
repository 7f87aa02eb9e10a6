"""Language models in KenLM's binary form, asked word by word through the ``kenlm`` package.

Goes in: the path of a binary. Goes out: a ``KenLM``. What it scores cannot be listed, so it becomes
no arrays: the torch search asks it one pair after another, on the CPU; the numba search cannot.
"""

from __future__ import annotations

import os
import re
import struct
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from w2vtool.decoder.ngram import BEGIN, END, UNKNOWN, LanguageModel
from w2vtool.errors import DataError

MAGIC = b"mmap lm "
_HEAD = struct.Struct("<100x?7xQ")  # whether words are kept, and how many there are
_TRIAL_SECONDS = 120
_TRIAL = """
import random, sys
sys.path.insert(0, sys.argv[1])
from kenlm import Model, State
model = Model(sys.argv[2])
words = [*sys.stdin.buffer.read().decode("utf-8", "replace").split(), "</s>", "?"]
here = State()
for word in random.Random(0).choices(words, k=50000):
    if word == "</s>":
        model.BeginSentenceWrite(here)
    after = State()
    model.BaseScore(here, word, after)
    here = after
"""


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
        found = _words(self.path) or []
        if not found or not all(self.knows(word) for word in found):
            raise DataError(
                "the words of this KenLM binary cannot be listed",
                where=str(self.path),
                hint="give its ARPA file, or a lexicon",
            )
        return [word for word in found if word not in (UNKNOWN, BEGIN, END)]


def read(path: Path) -> KenLM:
    """Open a binary. Raises DataError, also for a damaged one.

    Why another process asks it first: KenLM checks the size and the head of a file; what is wrong
    behind those would end this one by a signal. What KenLM writes to stderr is dropped: while a
    file loads, nothing else in the process can write there either.
    """
    try:
        from kenlm import Config, Model
    except ImportError:
        raise DataError(
            "a KenLM binary, and the kenlm package is not installed",
            where=str(path),
            hint="give the ARPA file instead, or: pip install ufal-kenlm",
        ) from None
    if _head(path).startswith(MAGIC):  # the package reads ARPA files too
        _try_out(path)
    config = Config()
    config.show_progress = False
    try:
        with _quiet_stderr():
            model = KenLM(Model(str(path), config), path)
    except (OSError, ValueError) as error:  # ValueError: bytes that are no text in its message
        raise DataError(
            f"not a language model that KenLM can read: {_reason(error)}",
            where=str(path),
            hint="give its ARPA file; KenLM as packaged reads n-gram orders 2 to 6",
        ) from None
    if _words(path) is None:
        raise _damaged(path, "its words are cut off")
    return model


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(_HEAD.size)


def _try_out(path: Path) -> None:
    """Load it and score some of its words elsewhere. Raises DataError if that process crashes."""
    import kenlm

    command = [sys.executable, "-c", _TRIAL, str(Path(kenlm.__file__).parent), str(path)]
    words = " ".join(_words(path) or []).encode()
    try:
        done = subprocess.run(
            command, input=words, capture_output=True, timeout=_TRIAL_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        raise _damaged(path, "KenLM does not come to an end with it") from None
    if done.returncode < 0:
        raise _damaged(path, f"KenLM crashes on it (signal {-done.returncode})")


def _damaged(path: Path, what: str) -> DataError:
    hint = "copy it again, or build it again with build_binary"
    return DataError(f"a damaged KenLM binary: {what}", where=str(path), hint=hint)


def _tail(path: Path, size: int) -> bytes:
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - size))
        return file.read()


def _words(path: Path) -> list[str] | None:
    """The words at the end of a file, without <unk>; [] where it has none, None for half of them.

    The head says whether they are there and how many: ``FixedWidthParameters`` and the counts in
    KenLM's binary_format.cc.
    """
    kept, count = _HEAD.unpack(_head(path).ljust(_HEAD.size, b"\0"))
    if not kept or not _head(path).startswith(MAGIC):
        return []
    size, tail, whole = 1 << 16, b"", path.stat().st_size
    while tail.count(b"\0") <= count and len(tail) < whole:
        tail, size = _tail(path, size), 4 * size
    count = min(count, whole)
    for others in (count - 1, count):  # a model without <unk> is given one that is not counted
        first, *words = tail[:-1].rsplit(b"\0", others)
        if tail.endswith(b"\0") and first.endswith(UNKNOWN.encode()):
            return [word.decode("utf-8", "replace") for word in words]
    return None


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
