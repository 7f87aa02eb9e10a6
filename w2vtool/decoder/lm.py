"""Open a language model, whatever its form.

Goes in: the path of an ARPA file (``.arpa``, ``.arpa.gz``), of a saved ``NGram`` (``.npz``), of a
KenLM binary, or of a folder with a model in it (``lm train`` makes such). Goes out: a
``LanguageModel`` that scores one word after another in log10.

ARPA files become arrays. For a large one that takes a while (a million n-grams in some seconds), so
the arrays are kept in a cache folder, and the next time are there at once.
"""

from __future__ import annotations

import gzip
import hashlib
import logging
import os
import re
import zlib
from pathlib import Path
from typing import Literal
from zipfile import BadZipFile

import numpy as np

from w2vtool.decoder import arpa, kenlm_binary, ngram
from w2vtool.decoder.ngram import LanguageModel, NGram
from w2vtool.errors import DataError

__all__ = ["LanguageModel", "NGram", "cache_folder", "open_lm"]
log = logging.getLogger(__name__)

TENSORS, ARPA, WORDS = "lm.npz", "lm.arpa.gz", "words.txt"  # in the folder of a model
_IN_FOLDER = (TENSORS, ARPA, "lm.arpa")  # what is there first is taken
_GZIP, _ZIP = b"\x1f\x8b", b"PK\x03\x04"
_HINT = "give a folder of w2vtool lm train, an ARPA file (.arpa, .arpa.gz) or a KenLM binary"
_DATA = re.compile(rb"(?:^|\n|\xef\xbb\xbf)[ \t]*(\\data\\)[ \t\r]*(?:\n|$)")
_HEAD_BYTES = 4096  # that tell what a file is
_HEADER_BYTES = 1 << 16  # where it must come; any text may stand before it
_CACHED_BYTES = 4 << 20  # a smaller file is read as fast as the cache


def cache_folder() -> Path:
    """Where parsed models are kept: ``$W2VTOOL_CACHE``, else ``w2vtool`` in the user's cache."""
    chosen = os.environ.get("W2VTOOL_CACHE")
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(chosen) if chosen else Path(home) / "w2vtool"


def open_lm(path: str | Path) -> LanguageModel:
    """Open a language model, or that of a folder.

    Raises DataError for a missing file and for one that is none.
    """
    path = located(Path(path))
    if path.is_dir():
        names = ", ".join(_IN_FOLDER)
        raise DataError(f"a folder without a model ({names})", where=str(path), hint=_HINT)
    head, size = _head(path)
    if head.startswith(kenlm_binary.MAGIC):
        return kenlm_binary.read(path)
    if head.startswith(_ZIP):
        return ngram.load(path)
    if size < _CACHED_BYTES:
        return _read_arpa(path, packed=head.startswith(_GZIP))
    return _cached(path, packed=head.startswith(_GZIP))


def is_binary(path: Path) -> bool:
    """Whether it is a KenLM binary; of what cannot be read, ``open_lm`` says so."""
    try:
        return _head(located(path))[0].startswith(kenlm_binary.MAGIC)
    except DataError:
        return False


def kind(path: Path) -> Literal["language model", "lexicon", ""]:
    """What a file or folder is by its first bytes; empty where that is neither, or not to be told.

    A lexicon has one word, or a word and a tab, in each line.
    """
    path = located(path)
    try:
        head, _ = _head(path)
        if head.startswith(_GZIP):
            with gzip.open(path) as file:
                head = file.read(_HEAD_BYTES)
    except (DataError, OSError, EOFError, zlib.error):
        return ""
    packed = head.startswith(_ZIP) and path.suffix == ".npz"
    if packed or head.startswith(kenlm_binary.MAGIC) or _DATA.search(head):
        return "language model"
    whole = head if len(head) < _HEAD_BYTES else head[: head.rfind(b"\n") + 1]
    try:
        lines = [line for line in whole.decode("utf-8-sig").splitlines() if line.strip()]
    except UnicodeDecodeError:
        return ""
    return "lexicon" if lines and all("\t" in x or len(x.split()) == 1 for x in lines) else ""


def located(path: Path) -> Path:
    """The file of a model: of a folder, the one in it; the folder itself if there is none."""
    if not path.is_dir():
        return path
    return next((path / name for name in _IN_FOLDER if (path / name).exists()), path)


def _head(path: Path) -> tuple[bytes, int]:
    try:
        with path.open("rb") as file:
            return file.read(_HEAD_BYTES), os.fstat(file.fileno()).st_size
    except FileNotFoundError:
        raise DataError("no such language model", where=str(path), hint=_HINT) from None
    except OSError as error:
        what = f"cannot be read: {error.strerror}"
        raise DataError(what, where=str(path), hint=_HINT) from None


def _cached(path: Path, *, packed: bool) -> NGram:
    """The model from the cache, if it was made of this very file, else from the file."""
    state = path.stat()
    stamp = np.array([state.st_size, state.st_mtime_ns])
    name = hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:16]
    saved = cache_folder() / f"{name}.npz"
    try:
        with saved.open("rb") as file, np.load(file, allow_pickle=False) as found:
            fresh = np.array_equal(found["stamp"], stamp)
        if fresh:
            return ngram.load(saved, shown=path)
    except (OSError, ValueError, KeyError, EOFError, BadZipFile, DataError) as error:
        log.debug("no use of %s: %s", saved, error)
    model = _read_arpa(path, packed=packed)
    try:
        saved.parent.mkdir(parents=True, exist_ok=True)
        model.save(saved, stamp=stamp)
    except OSError as error:
        log.info("%s is not kept in %s: %s", path, saved.parent, error)
    return model


def _read_arpa(path: Path, *, packed: bool) -> NGram:
    with gzip.open(path) if packed else path.open("rb") as file:
        try:
            head = file.read(_HEADER_BYTES)
            found = _DATA.search(head)
            if not found:
                what = f"begins with {head[:20]!r}" if head else "the file is empty"
                raise DataError(f"not a language model: {what}", where=str(path), hint=_HINT)
            file.seek(found.start(1))
            return arpa.read(iter(file), path, head.count(b"\n", 0, found.start(1)))
        except (OSError, EOFError, zlib.error) as error:
            raise DataError(
                f"cannot be unpacked: {error}", where=str(path), hint="copy the file again"
            ) from None
