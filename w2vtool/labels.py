"""Do transcripts, vocabulary and audio fit together? Answered before anything is trained.

Goes in: a manifest, the rules of spelling, the tokens, and how many frames the network makes. Goes
out: the manifest with its texts spelled, and without the rows that a recipe leaves out; or one
error that names every letter outside the vocabulary, and every text that is too long.

Why a manifest that loses rows gets a new hash: a batch plan is a function of the hash, and of other
rows it must be another plan.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
import torch

from w2vtool import views
from w2vtool.architecture import Architecture
from w2vtool.audio import SAMPLE_RATE
from w2vtool.batches import frames_of
from w2vtool.errors import ConfigError, DataError, shortened
from w2vtool.manifest import Manifest, Utterance, sha256
from w2vtool.schema import TextConfig
from w2vtool.text import (
    OddityReport,
    Rules,
    frames_needed,
    has_digits,
    letter_name,
    normalize,
)
from w2vtool.tokens import UNKNOWN, Tokens

SHOWN_PLACES = 3
DEFAULT = TextConfig()
Say = Callable[[str], None]


def spell(manifest: Manifest, rules: Rules, say: Say = lambda text: None) -> Manifest:
    """The manifest with its texts in the spelling that is trained on; its hash stays.

    Says which odd characters there were, and how many texts have digits. Raises DataError when
    rows have no text.
    """
    odd, digits, missing = OddityReport(), list[str](), list[str]()
    rows = views.changed(manifest.rows, partial(_spelled, rules=rules))
    for row in manifest.rows:
        odd.add(f"{manifest.path} ({row.id})", row.text or "")
        if has_digits(row.text or ""):
            digits.append(row.id)
        if not rules(row.text or ""):
            missing.append(row.id)
    if missing:
        raise DataError(
            f"{len(missing)} of {len(rows)} utterances have no text, first {missing[0]!r}",
            where=str(manifest.path),
            hint="CTC needs transcripts; audio alone is for pretrain",
        )
    for line in odd.lines():
        say(f"warning: {line}")
    if digits:
        say(
            f"{manifest.path}: {len(digits)} of {len(rows)} texts have digits, first {digits[0]!r};"
            " they are left as they are: write out how they are said"
        )
    return replace(manifest, rows=rows)


def _spelled(row: Utterance, rules: Rules) -> Utterance:
    return replace(row, text=rules(row.text or ""))


@dataclass
class Survey:
    """What does not fit, of the rows of a manifest."""

    rows: int = 0
    counts: Counter[str] = field(default_factory=Counter)  # of letters outside the vocabulary
    places: dict[str, list[str]] = field(default_factory=dict)  # the first ids with each
    strange: set[int] = field(default_factory=set)  # rows with such letters
    long: dict[int, str] = field(default_factory=dict)  # rows too short for their text, and why

    def unknown_lines(self) -> Iterator[str]:
        """A line for each letter outside the vocabulary, the most frequent first."""
        for letter, count in self.counts.most_common():
            yield (
                f"{letter_name(letter)}, {count} times, first in {', '.join(self.places[letter])}"
            )


def survey(rows: Iterable[Utterance], tokens: Tokens, frames: Iterable[int]) -> Survey:
    """Compare each row's text with the vocabulary, and with the frames that its audio gives."""
    found = Survey()
    for index, (row, there) in enumerate(zip(rows, frames, strict=True)):
        text = row.text or ""
        unknown = tokens.unknown(text)
        for letter in unknown:
            found.counts[letter] += text.count(letter)
            places = found.places.setdefault(letter, [])
            if len(places) < SHOWN_PLACES:
                places.append(row.id)
        if unknown:
            found.strange.add(index)
        if not unknown or UNKNOWN in tokens.symbols:
            needed = frames_needed(tokens.encode(text, unknown=True))
            if needed > there:
                fact = f"{needed} frames to emit {text!r}, the audio has {there}"
                found.long[index] = f"{row.id}: {fact}"
        found.rows += 1
    return found


def fit(
    manifest: Manifest,
    tokens: Tokens,
    architecture: Architecture,
    text: TextConfig = DEFAULT,
    say: Say = lambda text: None,
) -> Manifest:
    """The rows that can be trained on; says which are left out, if the recipe leaves rows out.

    Raises one DataError for all letters and rows that do not fit and that ``text.unknown`` and
    ``text.too_long`` do not speak of, ConfigError when there is no ``<unk>`` to learn.
    """
    if text.unknown == "keep-as-unk" and UNKNOWN not in tokens.symbols:
        raise ConfigError(
            f"text.unknown is keep-as-unk, and the vocabulary has no {UNKNOWN}",
            hint="text.unknown=drop-rows leaves out the rows with unknown letters",
        )
    samples = torch.from_numpy(np.rint(manifest.durations * SAMPLE_RATE).astype(np.int64))
    frames = frames_of(samples, architecture).tolist()
    found = survey(manifest.rows, tokens, frames)
    problems, hints = _problems(found, tokens, text)
    if problems:
        raise DataError("\n".join(problems), where=str(manifest.path), hint="; ".join(hints))
    if found.counts:
        _tell_unknown(found, manifest, text, say)
    dropped = found.strange if text.unknown == "drop-rows" else set()
    if text.too_long == "drop" and found.long:
        say(f"{manifest.path}: {len(found.long)} rows left out, their text is too long:")
        for line in shortened(list(found.long.values())):
            say(f"  {line}")
        dropped = dropped | found.long.keys()
    if not dropped:
        return manifest
    left = np.setdiff1d(np.arange(found.rows), np.fromiter(dropped, np.int64))
    say(f"{manifest.path}: {len(left)} of {found.rows} rows are left")
    if not len(left):
        raise DataError("no row is left", where=str(manifest.path), hint="see text.unknown")
    rows = views.chosen(manifest.rows, left)
    return Manifest(manifest.path, rows, sha256(rows))


def _problems(found: Survey, tokens: Tokens, text: TextConfig) -> tuple[list[str], list[str]]:
    """What stops a training, and what can be done about it."""
    problems: list[str] = []
    hints: list[str] = []
    if found.counts and text.unknown == "error":
        lines = "\n  ".join(shortened(list(found.unknown_lines())))
        head = f"{len(found.counts)} letters outside the vocabulary, in {len(found.strange)} texts"
        problems.append(f"{head}\n  {lines}")
        hints += advice(found.counts, tokens)
        hints.append("text.unknown=drop-rows leaves the rows out, keep-as-unk learns <unk>")
    too_long = found.long if text.unknown != "drop-rows" else found.long.keys() - found.strange
    if too_long and text.too_long == "error":
        lines = "\n  ".join(shortened([found.long[index] for index in sorted(too_long)]))
        problems.append(f"{len(too_long)} texts are too long for their audio\n  {lines}")
        hints.append("text.too_long=drop leaves the rows out")
    return problems, hints


def advice(unknown: Iterable[str], tokens: Tokens) -> Iterator[str]:
    """What would bring letters into the vocabulary, as far as that can be told."""
    letters = set(unknown)
    cased = {letter for letter in letters if letter.lower() != letter.upper()}
    for case, turn in (("lower", str.lower), ("upper", str.upper)):
        if cased and not any(tokens.unknown(turn(letter)) for letter in cased):
            yield f"text.case={case} would write {''.join(sorted(cased))[:40]}"
    if any(has_digits(letter) for letter in letters):
        yield "write out numbers as they are said"
    if any(not normalize(letter, "keep", punctuation="drop") for letter in letters):
        yield "text.punctuation=drop removes punctuation"
    if any(letter.isalpha() for letter in letters):
        yield "text.tokens=from-text, or w2vtool tokens train, makes tokens for these texts"


def _tell_unknown(found: Survey, manifest: Manifest, text: TextConfig, say: Say) -> None:
    what = "left out" if text.unknown == "drop-rows" else f"kept, with {UNKNOWN} for the letters"
    number = len(found.strange)
    say(f"{manifest.path}: {number} rows with letters outside the vocabulary are {what}:")
    for line in shortened(list(found.unknown_lines())):
        say(f"  {line}")
