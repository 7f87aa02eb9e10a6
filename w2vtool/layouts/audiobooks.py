"""Audiobooks: LibriSpeech, Libri-Light, Multilingual LibriSpeech (MLS).

- LibriSpeech: ``SPEAKER/CHAPTER/SPEAKER-CHAPTER.trans.txt`` with lines ``ID TEXT`` beside
  ``ID.flac``. Libri-Light's labelled sets (``1h/0/clean/…``) are the same.
- Libri-Light: ``small/SPEAKER/BOOK/CHAPTER.flac`` of up to hours, each beside a ``.json`` with the
  times of speech (``voice_activity``), by which the chapters are cut.
- MLS: ``mls_german/train/transcripts.txt`` (``ID<TAB>TEXT``), ``audio/SPEAKER/BOOK/ID.flac`` (or
  ``.opus``), ``limited_supervision/{9hr,1hr/0…5}/handles.txt`` (ids).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from w2vtool.audio import EXTENSIONS
from w2vtool.errors import DataError
from w2vtool.layouts.reading import (
    MAX_SECONDS,
    Misfit,
    Rows,
    above,
    existing,
    extra,
    files,
    is_file,
    lines,
    nothing,
    parsed,
    recordings,
)
from w2vtool.manifest import Candidate, Rejected

# A piece of Libri-Light: LARGE is pre-trained on crops of at most 20 s (paper §4.2)
PIECE_SECONDS = 20.0
LANGUAGES = {
    "dutch": "nl",
    "english": "en",
    "french": "fr",
    "german": "de",
    "italian": "it",
    "polish": "pl",
    "portuguese": "pt",
    "spanish": "es",
}


def librispeech(root: Path) -> Rows:
    """LibriSpeech's own folders, at any depth. The speaker is the id up to the first ``-``."""
    found = list(files(root))
    audio = dict.fromkeys(path for path in found if path.suffix.lower() in EXTENSIONS)
    beside = {(path.parent, path.stem): path for path in reversed(audio)}
    books = [path for path in found if path.name.endswith(".trans.txt")]
    if not books:
        raise DataError("no *.trans.txt in this folder", where=str(root), hint="try --corpus auto")

    def row(line: str, where: str) -> Candidate:
        utterance, _, text = line.strip().partition(" ")
        path = beside.get((book.parent, utterance))
        audio.pop(path or book, None)
        if not text.strip():
            raise Misfit("bad-line", f"not 'ID TEXT': {line[:60]!r}")
        if path is None:
            what = f"no audio file {utterance}.flac (or other ending) beside it"
            raise Misfit("missing", what)
        return Candidate(utterance, path, text, utterance.split("-")[0], where)

    for book in books:
        yield from parsed(book, row)
    yield from (Rejected(str(path), "no-transcript", "in no *.trans.txt") for path in audio)


def librilight(root: Path) -> Rows:
    """Chapters of Libri-Light, cut at pauses into pieces of at most 20 s.

    Neighbouring stretches of speech are one piece while all of it, pauses included, is no longer;
    a longer stretch stays whole. The speaker is that of the ``.json``. Folders with transcripts are
    the labelled sets, and read like LibriSpeech.
    """
    if any(path.name.endswith(".trans.txt") for path in files(root)):
        yield from librispeech(root)  # librispeech_finetuning/1h
        return
    found = False
    for path in recordings(root):
        found = True
        facts = path.with_suffix(".json")
        try:
            speaker, speech = _chapter(facts)
        except Misfit as error:
            yield Rejected(str(facts), error.reason, error.detail)
            continue
        # chapters of several books share names; SPEAKER/BOOK/CHAPTER does not
        name = "/".join((*path.parts[-3:-1], path.stem))
        for number, (start, end) in enumerate(pieces(speech)):
            duration = round(end - start, 6)
            yield Candidate(
                f"{name}_{number:04d}", path, None, speaker, str(facts), start, duration
            )
    if not found:
        raise nothing("no audio in this folder", root)


def _chapter(facts: Path) -> tuple[str, list[tuple[float, float]]]:
    """Speaker and stretches of speech (seconds) of one chapter."""
    if not facts.is_file():
        raise Misfit("missing", "no .json beside the audio, so its pauses are unknown")
    try:
        found = json.loads(facts.read_bytes())
        speech = [(float(start), float(end)) for start, end in found["voice_activity"]]
        speaker = str(found["speaker"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        what = f"no speaker and voice_activity in it ({type(error).__name__}: {error})"
        raise Misfit("bad-file", what) from error
    if (
        any(not 0 <= start <= end - 1e-6 < MAX_SECONDS for start, end in speech)
        or sorted(speech) != speech
    ):
        raise Misfit("bad-file", "voice_activity is not a rising list of [start, end]")
    return speaker, speech


def pieces(speech: Sequence[tuple[float, float]]) -> Iterator[tuple[float, float]]:
    """Stretches of speech (seconds), joined while they are at most 20 s from end to end."""
    first: float | None = None
    last = 0.0
    for start, end in speech:
        if first is not None and end - first > PIECE_SECONDS:
            yield first, last
            first = None
        first, last = (start if first is None else first), end
    if first is not None:
        yield first, last


def mls(root: Path) -> Rows:
    """A split of MLS (``train``), or a labelled set of it (``train/limited_supervision/1hr``)."""
    base = root if root.is_dir() else root.parent
    book = above(base, "transcripts.txt")
    if book is None:
        hint = "name a split: train, dev, test or train/limited_supervision/9hr"
        raise nothing("no transcripts.txt in this folder", root, hint)
    handles = [path for path in files(root) if path.name == "handles.txt"]
    limited = "limited_supervision" in base.absolute().parts
    chosen: dict[str, str] = {}
    for item in (item for path in handles if limited for item in lines(path)):
        if isinstance(item, Rejected):
            yield item
        else:
            chosen[item[0].strip()] = item[1]
    lang, folder = _language(book.parent), book.parent / "audio"

    def row(line: str, where: str) -> Candidate | None:
        utterance, tab, text = line.partition("\t")
        if limited and chosen.pop(utterance, None) is None:
            return None
        speaker, _, rest = utterance.partition("_")
        title = rest.partition("_")[0]
        if not tab or not text.strip() or not title:
            raise Misfit("bad-line", f"not 'SPEAKER_BOOK_NUMBER<TAB>TEXT': {line[:60]!r}")
        stem = folder / speaker / title / utterance
        path = next((p for kind in (".flac", ".opus") if is_file(p := Path(f"{stem}{kind}"))), None)
        path = path or existing(Path(f"{stem}.flac"), f"{utterance}.flac or .opus")
        return Candidate(utterance, path, text, speaker, where, lang=lang, extra=extra(book=title))

    yield from parsed(book, row)
    what = f"is not in {book.name}"
    yield from (
        Rejected(where, "no-transcript", f"{name} {what}") for name, where in chosen.items()
    )


def _language(folder: Path) -> str | None:
    """The language of ``mls_german/train`` or ``mls_german_opus/train``."""
    names = (part.removesuffix("_opus") for part in reversed(folder.absolute().parts))
    return next((LANGUAGES.get(n[4:], n[4:]) for n in names if n.startswith("mls_")), None)
