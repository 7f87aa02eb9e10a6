"""Vocabularies of Hugging Face folders, and the language model that may lie beside them.

Goes in: ``vocab.json`` and the tokenizer files next to it, or our ``Tokens``. Goes out: ``Tokens``,
or these files, with ``alphabet.json`` and ``language_model/`` for pyctcdecode.

Why symbols are renamed: there the CTC blank is the row of ``<pad>``, here it is called ``<s>``, as
in fairseq. The two names change places, the rows of the head stay where they are. Source: fairseq
``dict.ltr.txt`` beside transformers' ``vocab.json`` of the same published models.
"""

from __future__ import annotations

import gzip
import shutil
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from w2vtool.errors import CheckpointError, DataError
from w2vtool.interop.hf_files import read_json, write_json
from w2vtool.text import WORD_END
from w2vtool.tokens import Tokens

_PIECES = "sentencepiece.model"  # a file of ours, which transformers does not look at
_UNKNOWN_OFFSET = -10.0  # pyctcdecode's default for words outside of unigrams.txt
_MODEL_NAMES = {b"mmap lm ": "lm.binary", b"\\data\\": "lm.arpa"}
_SYMBOLS = {"bos_token": "<s>", "eos_token": "</s>", "word_delimiter_token": WORD_END}
_PAD_NAMES = ("<pad>", "[PAD]")  # where no file says how it is called
_UNKNOWN_NAMES = ("<unk>", "[UNK]")
_SHOWN = 12  # symbols or rows that one error lists


class LanguageModelFiles(NamedTuple):
    """A word n-gram model to put beside a CTC model, with its weights in pyctcdecode's units."""

    path: Path  # ARPA (.gz too) or KenLM binary
    words: Path | None  # a word a line, or a lexicon; None: the unigrams of the ARPA file
    alpha: float  # nats for a nat of the language model: our lm_weight / ln 10
    beta: float  # nats for a word: our word_score


# -- reading ----------------------------------------------------------------------------------


def read_vocabulary(path: Path, pad_row: int | None = None) -> Tokens:
    """Tokens of a ``vocab.json``, with the tokenizer files beside it where there are any.

    ``pad_row`` is the model's ``pad_token_id``, where it is known. Raises CheckpointError for what
    is no vocabulary of letters, the rows without a symbol named.
    """
    return _read(path, None, pad_row)[0]


def find_vocabulary(
    folder: Path, rows: int, pad_row: int | None
) -> tuple[Tokens | None, tuple[str, ...]]:
    """Tokens of a folder for a head with ``rows`` outputs, and warnings; no tokens without a file.

    ``pad_row`` is the model's ``pad_token_id``. Raises CheckpointError as ``read_vocabulary``, and
    for rows of the head that have no symbol.
    """
    path = folder / "vocab.json"
    return _read(path, rows, pad_row) if path.is_file() else (None, ())


def _read(path: Path, rows: int | None, pad_row: int | None) -> tuple[Tokens, tuple[str, ...]]:
    settings = _settings(path.parent)
    if "Phoneme" in str(settings.get("tokenizer_class")):
        raise CheckpointError(
            "a vocabulary of phonemes; w2vtool's tokens are letters or SentencePiece pieces",
            where=str(path),
        )
    symbols = _symbols(path, _added(path.parent, settings), rows)
    for key, names in (("pad_token", _PAD_NAMES), ("unk_token", _UNKNOWN_NAMES)):
        settings.setdefault(key, next((name for name in names if name in symbols), None))
    pad = settings["pad_token"]
    blank = symbols.index(pad) if pad in symbols else pad_row
    if blank is None or not 0 <= blank < len(symbols):
        lacking = [" and ".join(_PAD_NAMES) if pad is None else pad]
        lacking += [] if pad_row is None else [f"row {pad_row} (pad_token_id)"]
        raise CheckpointError(
            f"no CTC blank: {', '.join(lacking)} are not in the vocabulary",
            where=str(path),
            hint="say which symbol it is: pad_token in a tokenizer_config.json beside the file",
        )
    warnings = []
    if pad_row is not None and pad_row != blank:
        warnings.append(
            f"pad_token_id of config.json is {pad_row}, the tokenizer's {pad!r} is row {blank}: "
            f"row {blank} is taken as the CTC blank, as transformers' tokenizer decodes"
        )
    if settings.get("do_lower_case"):
        warnings.append(
            "the tokenizer turns transcripts to lower case (do_lower_case); here they stay in the "
            "case of the vocabulary"
        )
    return _tokens(path, _renamed(symbols, blank, settings), blank), tuple(warnings)


def _settings(folder: Path) -> dict[str, Any]:
    """What the tokenizer files of a folder say, over the defaults of transformers' tokenizer.

    The names of pad and unknown symbol are absent where no file says them.
    """
    settings: dict[str, Any] = dict(_SYMBOLS)
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        if (folder / name).is_file():
            settings |= read_json(folder / name)
    for key in {"pad_token", "unk_token", *_SYMBOLS} & settings.keys():
        value = settings[key]
        settings[key] = symbol = value.get("content") if isinstance(value, dict) else value
        if not isinstance(symbol, str | None):
            raise CheckpointError(f"{key} is {value!r}, not a symbol", where=str(folder))
    return settings


def _added(folder: Path, settings: Mapping[str, Any]) -> dict[str, int]:
    """Symbols that were added to the tokenizer after ``vocab.json`` was made, with their rows."""
    path = folder / "added_tokens.json"
    added = read_json(path) if path.is_file() else {}
    later = settings.get("added_tokens_decoder")
    for row, token in later.items() if isinstance(later, dict) else ():
        if row.isdecimal() and isinstance(token, dict):
            added.setdefault(str(token.get("content")), int(row))
    return added


def _symbols(path: Path, added: Mapping[str, int], rows: int | None) -> list[str]:
    """The symbols in the order of the rows. Raises CheckpointError listing all problems."""
    listed = read_json(path)
    where = str(path)
    if listed and all(isinstance(value, dict) for value in listed.values()):
        names = " ".join(sorted(listed)[:_SHOWN])
        raise CheckpointError(
            f"vocabularies of {len(listed)} languages (MMS), not one: {names} …",
            where=where,
            hint="take the object of the language that the head is for into a file of its own",
        )
    wrong = [repr(s) for s, row in listed.items() if type(row) is not int or row < 0]
    if not listed or wrong:
        what = f"no row number at {', '.join(wrong[:_SHOWN])}" if wrong else "it is empty"
        raise CheckpointError(f"not a vocabulary (symbol: row): {what}", where=where)
    counts = Counter(listed.values())
    problems = [
        f"row {row} is that of {' and '.join(repr(s) for s, r in listed.items() if r == row)}"
        for row, count in counts.items()
        if count > 1
    ]
    by_row = {row: symbol for symbol, row in listed.items()}
    for symbol, row in added.items():
        if type(row) is int and symbol not in listed and (rows is None or row < rows):
            by_row.setdefault(row, symbol)
    wanted = max(by_row) + 1 if rows is None else rows
    if lacking := [str(row) for row in range(wanted) if row not in by_row]:
        shown = ", ".join(lacking[:_SHOWN]) + (" …" if len(lacking) > _SHOWN else "")
        problems.append(f"no symbol for {len(lacking)} of {wanted} rows: {shown}")
    if beyond := [f"{symbol!r} (row {row})" for row, symbol in by_row.items() if row >= wanted]:
        problems.append(f"the CTC head has {wanted} rows, too few for {', '.join(beyond[:_SHOWN])}")
    if problems:
        raise CheckpointError(
            "\n  ".join(["the vocabulary does not fit", *problems]),
            where=where,
            hint=f"give one symbol a line for all {wanted} rows: --vocab LIST.txt"
            if lacking
            else "give the vocabulary that the model was fine-tuned with: --vocab",
        )
    return [by_row[row] for row in range(wanted)]


def _renamed(symbols: Sequence[str], blank: int, settings: Mapping[str, Any]) -> list[str]:
    """Our names of the special symbols: the blank is ``<s>``, the row called so is ``<pad>``."""
    ours = {
        settings["bos_token"]: "<pad>",
        "<s>": "<pad>",
        settings["eos_token"]: "</s>",
        settings["unk_token"]: "<unk>",
        settings["word_delimiter_token"]: WORD_END,
    }
    named = [ours.get(symbol, symbol) for symbol in symbols]
    named[blank] = "<s>"
    return named


def _tokens(path: Path, symbols: Sequence[str], blank: int) -> Tokens:
    pieces = path.with_name(_PIECES)
    try:
        if not pieces.is_file():
            return Tokens(tuple(symbols), blank)
        tokens = Tokens.from_sentencepiece(pieces)
        if set(tokens.symbols) != set(symbols):
            raise DataError(f"{_PIECES} has other pieces")
        return Tokens(tuple(symbols), blank, "sentencepiece", tokens.model)
    except DataError as exc:
        raise CheckpointError(
            f"not a vocabulary of letters with a word delimiter: {exc.what}",
            where=str(path),
            hint="if the model gives letters and a separator, say so: --vocab dict.ltr.txt",
        ) from exc


# -- writing ----------------------------------------------------------------------------------


def foreign_symbols(tokens: Tokens) -> tuple[str, ...]:
    """The symbols under transformers' names: the blank is ``<pad>``, the row called so ``<s>``."""
    swapped = {"<pad>": tokens.symbols[tokens.blank], tokens.symbols[tokens.blank]: "<pad>"}
    return tuple(swapped.get(symbol, symbol) for symbol in tokens.symbols)


def special_rows(tokens: Tokens) -> dict[str, int | None]:
    """The special rows as ``config.json`` names them."""
    symbols = foreign_symbols(tokens)
    rows = {symbol: row for row, symbol in enumerate(symbols)}
    return {
        "pad_token_id": tokens.blank,
        "bos_token_id": rows.get("<s>"),
        "eos_token_id": rows.get("</s>"),
    }


def write_vocabulary(folder: Path, tokens: Tokens, processor: str) -> None:
    """Write ``vocab.json`` and ``tokenizer_config.json``, for transformers' CTC tokenizer.

    Special symbols that are not in the vocabulary are null, else the tokenizer would add rows.
    """
    symbols = foreign_symbols(tokens)
    write_json(folder / "vocab.json", {symbol: row for row, symbol in enumerate(symbols)})
    names = {"pad": "<pad>", "bos": "<s>", "eos": "</s>", "unk": "<unk>", "word_delimiter": "|"}
    config: dict[str, Any] = {
        f"{key}_token": name if name in symbols else None for key, name in names.items()
    }
    config |= {
        "tokenizer_class": "Wav2Vec2CTCTokenizer",
        "processor_class": processor,
        "replace_word_delimiter_char": " ",
        "do_lower_case": False,  # it would change the case of what the model says
        "clean_up_tokenization_spaces": False,  # it would join words at apostrophes
    }
    write_json(folder / "tokenizer_config.json", config)
    if tokens.kind == "sentencepiece":
        (folder / _PIECES).write_bytes(tokens.model)


def write_language_model(folder: Path, tokens: Tokens, files: LanguageModelFiles) -> None:
    """Write what pyctcdecode reads: ``alphabet.json`` and ``language_model/``.

    Raises DataError for a file that is no language model, and for a binary one without words.
    """
    labels = {"<pad>": "", WORD_END: " ", "<unk>": "⁇"}
    pieces = tokens.kind == "sentencepiece"
    alphabet = [labels.get(symbol, symbol) for symbol in foreign_symbols(tokens)]
    write_json(folder / "alphabet.json", {"labels": alphabet, "is_bpe": pieces})
    inside = folder / "language_model"
    inside.mkdir()
    name = _copy_model(files, inside)
    words = _unigrams(inside / name) if files.words is None else _listed(files.words)
    text = "".join(f"{word}\n" for word in sorted(set(words)))
    (inside / "unigrams.txt").write_text(text, encoding="utf-8")
    attributes = {
        "alpha": float(files.alpha),
        "beta": float(files.beta),
        "unk_score_offset": _UNKNOWN_OFFSET,
        "score_boundary": True,
    }
    write_json(inside / "attrs.json", attributes)


def _copy_model(files: LanguageModelFiles, folder: Path) -> str:
    """Copy the model, unpacked, under a name by which pyctcdecode knows its format."""
    try:
        with files.path.open("rb") as file:
            packed = file.read(2) == b"\x1f\x8b"
        with gzip.open(files.path) if packed else files.path.open("rb") as file:
            head = file.read(64).lstrip()
            name = next((n for magic, n in _MODEL_NAMES.items() if head.startswith(magic)), None)
            if name is None:
                raise DataError("not a language model", where=str(files.path))
            if files.words is None and name != "lm.arpa":
                raise DataError(
                    "a KenLM binary does not list its words",
                    where=str(files.path),
                    hint="give the ARPA file that it was made from, or its words with --words",
                )
            file.seek(0)
            with (folder / name).open("wb") as copy:
                shutil.copyfileobj(file, copy, 1 << 20)
    except (OSError, EOFError, zlib.error) as exc:
        raise DataError(f"cannot be read: {exc}", where=str(files.path)) from exc
    return name


def _listed(path: Path) -> Iterator[str]:
    """The first field of each line."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as exc:
        raise DataError(f"cannot be read ({exc.strerror})", where=str(path)) from exc
    except UnicodeDecodeError as exc:
        raise DataError(f"not UTF-8 (byte {exc.start})", where=str(path)) from exc
    return (line.split()[0] for line in lines if line.strip())


def _unigrams(path: Path) -> Iterator[str]:
    """Words of an ARPA file; the marks of sentence ends and unknown words are none."""
    inside = False
    with path.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            if line.startswith("\\"):
                if inside:
                    return
                inside = line.strip() == "\\1-grams:"
            fields = line.split()
            if inside and len(fields) > 1 and fields[1] not in ("<s>", "</s>", "<unk>"):
                yield fields[1]
