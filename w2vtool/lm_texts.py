"""Texts for language models: sentences of files, and for models of letters or pieces in tokens.

Goes in: text files, manifests, tables and corpora; and a checkpoint, a SentencePiece model or a
list of letters. Goes out: sentences in one case; or texts whose tokens stand apart, spelled by the
checkpoint's rules: ``T H I S | I S |`` or ``▁TH IS ▁IS``.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Literal

from w2vtool import corpora, manifest
from w2vtool.decoder.lexicon import letter_ids, separator
from w2vtool.decoder.lm_train import read_lines
from w2vtool.errors import ConfigError, DataError
from w2vtool.text import WORD_END, letter_name, normalize
from w2vtool.tokens import Tokens

log = logging.getLogger(__name__)
_SHOWN = 10


def sentences(paths: Iterable[Path], case: Literal["upper", "lower", "keep"]) -> Iterator[str]:
    """Lines of text files (packed ones too), transcripts of manifests, tables and corpora.

    Raises DataError for what cannot be read, and for a table or corpus without a transcript.
    """
    for path in paths:
        if path.suffix == ".jsonl":
            source: Iterable[str] = (row.text for row in manifest.read(path).rows if row.text)
        elif path.suffix == ".tsv" or path.is_dir():
            source = transcripts(path)
        else:
            source = read_lines([path])
        for line in source:
            yield normalize(line, case)


def transcripts(path: Path) -> list[str]:
    """Those of a table or of a corpus; rows that cannot be used are left out, and counted.

    Raises DataError where there is none.
    """
    found = corpora.scan(path)
    problems = [f"{row.path}: {row.detail}" for row in found.problems]
    texts = [row.text for row in found.candidates if row.text]
    if not texts:
        raise DataError(
            "\n  ".join(["no transcripts", *problems[:_SHOWN]]),
            where=str(path),
            hint="if its transcripts are in tables (.tsv) or manifests (.jsonl), name these"
            if path.is_dir()
            else "text without columns has another ending, like .txt",
        )
    if problems:
        log.warning("%s: %d rows are left out; %s", path, len(problems), problems[0])
    return texts


def open_tokens(path: Path) -> tuple[Tokens, Callable[[str], str]]:
    """The tokens of a checkpoint, with its rules for texts; or of a file, with none.

    Raises ConfigError for a checkpoint without tokens, DataError and CheckpointError for what
    cannot be read.
    """
    from w2vtool import checkpoint

    if path.suffix == ".model":
        return Tokens.from_sentencepiece(path), str
    if path.is_file():
        return Tokens.from_dictionary(path), str
    spec = checkpoint.load(path).spec
    if spec.tokens is None:
        raise ConfigError(
            "a pre-trained checkpoint has no tokens",
            where=str(path),
            hint="give one of finetune-ctc, or the file of tokens train",
        )
    return spec.tokens, spec.rules


def usable(path: Path) -> list[str]:
    """The tokens that a text can be spelled in: a model of a narrow domain still knows them all."""
    tokens, _ = open_tokens(path)
    return [*letter_ids(tokens), *([WORD_END] if separator(tokens) >= 0 else [])]


def spelled(texts: Iterable[str], path: Path) -> Iterator[str]:
    """Texts in tokens, a space between two; those with letters that have none are left out.

    How many, and for which letters, is logged. Raises DataError where none is left.
    """
    tokens, rules = open_tokens(path)
    there = frozenset(tokens.symbols)
    lacking: Counter[str] = Counter()
    kept = left = 0
    for text in texts:
        symbols = tokens.pieces(rules(text))
        strange = [symbol for symbol in symbols if symbol not in there]
        if strange:
            lacking.update({letter for symbol in strange for letter in symbol})
            left += 1
            continue
        kept += bool(symbols)
        yield " ".join(symbols)
    shown = ", ".join(letter_name(letter) for letter, _ in lacking.most_common(_SHOWN))
    if left and not kept:
        raise DataError(
            f"the tokens can spell none of the {left} lines: there is none for {shown}",
            where=str(path),
            hint="--case upper or lower, as the transcripts are",
        )
    if left:
        log.warning("left out: %d of %d lines, with letters that have no token: %s",
                    left, left + kept, shown)  # fmt: skip
