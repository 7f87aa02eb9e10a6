"""Write the files of an n-gram model: a folder that ``open_lm`` opens, or an ARPA file alone.

Goes in: words and the tables of every order. Goes out: ``lm.arpa.gz`` for other tools, ``lm.npz``
that loads at once, ``words.txt``. All are made under a temporary name and moved at the end, so that
an interrupted run leaves neither half of a file nor new files beside old ones.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from w2vtool.decoder import arpa_writer, lm
from w2vtool.decoder.ngram import BEGIN, END, UNKNOWN, OrderTable, assemble
from w2vtool.run import write_atomic


def is_file(out: Path) -> bool:
    """Whether the name asks for the ARPA file alone."""
    return out.name.endswith((".arpa", ".arpa.gz"))


def write(
    out: Path,
    words: Sequence[str],
    tables: Sequence[OrderTable],
    on_progress: Callable[[int], None] = lambda ngrams: None,
) -> list[str]:
    """Write them, and return the words that the model knows, sorted.

    ``on_progress`` is told how many n-grams are in the ARPA file, and may raise to stop.
    """
    listed = sorted(set(words) - {UNKNOWN, BEGIN, END})
    if is_file(out):
        arpa_writer.write(words, tables, out, on_progress)
        return listed
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out, prefix=".lm-") as name:
        made = Path(name)
        arpa_writer.write(words, tables, made / lm.ARPA, on_progress)
        write_words(made / lm.WORDS, listed)
        assemble(words, tables, out).save(made / lm.TENSORS)
        for file in (lm.ARPA, lm.WORDS, lm.TENSORS):
            (made / file).replace(out / file)
    return listed


def write_words(path: Path, words: Iterable[str]) -> None:
    """Write a lexicon: words, one a line."""
    write_atomic(path, "".join(f"{word}\n" for word in words))
