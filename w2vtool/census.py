"""What is in manifests: hours, speakers, languages, lengths, letters, and what looks odd.

Goes in: rows. Goes out: a ``Census``, counted in one pass, and histograms of it.

Why a rate of speech: text of another utterance, a transcript cut short and silence at the ends all
show as letters per second that no person speaks at.
"""

from __future__ import annotations

import unicodedata
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from w2vtool.manifest import Utterance, emission_frames
from w2vtool.text import BIDI, frames_needed, letters

KEPT = 1000  # ids of each oddity that are kept, of millions that there may be
RARE = 10  # a letter that stands less often than this in RARE_OF letters is rare
RARE_OF = 100_000
OUTLYING = 3.5  # robust standard deviations of the logarithm of the rate
_MIN_RATES = 20  # of fewer rows, nothing can be said to lie outside
_KINDS = {"Cc": "control", "Cf": "invisible", "Co": "private use", "Cn": "unassigned"}
_KINDS |= {"Zl": "line separator", "Zp": "paragraph separator", "Zs": "unusual space"}


class Extreme(NamedTuple):
    """A row that stands out: its id, and by what value."""

    id: str
    value: float


@dataclass
class Census:
    """Counts of rows, and the ids of those that stand out."""

    durations: array[float] = field(default_factory=lambda: array("d"))
    characters: array[int] = field(default_factory=lambda: array("q"))  # of rows with text
    rates: array[float] = field(default_factory=lambda: array("d"))  # characters a second
    speaker_seconds: Counter[str] = field(default_factory=Counter)
    lang_seconds: Counter[str] = field(default_factory=Counter)
    lang_rows: Counter[str] = field(default_factory=Counter)
    sample_rates: Counter[int | None] = field(default_factory=Counter)
    alphabet: Counter[str] = field(default_factory=Counter)
    first: dict[str, str] = field(default_factory=dict)  # odd letter → id where it stands first
    without: Counter[str] = field(default_factory=Counter)  # "text", "speaker", "lang" → rows
    not_nfc: list[str] = field(default_factory=list)
    infeasible: list[str] = field(default_factory=list)  # more CTC labels than frames
    not_nfc_rows: int = 0
    infeasible_rows: int = 0
    shortest: Extreme = field(default_factory=lambda: Extreme("", float("inf")))
    longest: Extreme = field(default_factory=lambda: Extreme("", 0.0))
    _texts: list[str] = field(default_factory=list)  # ids of rows with text, beside ``rates``

    @property
    def rows(self) -> int:
        """Rows in all."""
        return len(self.durations)

    @property
    def seconds(self) -> float:
        """Audio in all."""
        return float(np.sum(self.durations))

    def odd_letters(self) -> Iterator[tuple[str, str, int]]:
        """Letter, what is odd about it, and how often it stands; rare ones last."""
        total = self.alphabet.total()
        found = [(oddity(letter), letter, n) for letter, n in self.alphabet.items()]
        yield from ((letter, kind, n) for kind, letter, n in sorted(found) if kind)
        rare = [(n, letter) for kind, letter, n in found if not kind and n < RARE]
        if total >= RARE_OF:
            yield from ((letter, "rare", n) for n, letter in sorted(rare))

    def outliers(self) -> tuple[list[Extreme], list[Extreme]]:
        """Rows far too slow and far too fast in characters a second, the worst first."""
        rates = np.log(np.asarray(self.rates))
        if len(rates) < _MIN_RATES:
            return [], []
        middle = np.median(rates)
        spread = 1.4826 * np.median(np.abs(rates - middle))  # of a normal law: its deviation
        far = (rates - middle) / max(spread, 0.01)
        order = np.argsort(far, kind="stable")
        slow = [int(i) for i in order if far[i] < -OUTLYING]
        fast = [int(i) for i in order[::-1] if far[i] > OUTLYING]
        return self._extremes(slow), self._extremes(fast)

    def _extremes(self, found: Sequence[int]) -> list[Extreme]:
        return [Extreme(self._texts[i], self.rates[i]) for i in found]


def take(rows: Iterable[Utterance], on_row: Callable[[int], None] = lambda done: None) -> Census:
    """Count rows; ``on_row(done)`` is called after each, and may raise to stop."""
    census = Census()
    for done, row in enumerate(rows, start=1):
        census.durations.append(row.duration)
        census.sample_rates[row.sample_rate] += 1
        if row.duration < census.shortest.value:
            census.shortest = Extreme(row.id, row.duration)
        if row.duration > census.longest.value:
            census.longest = Extreme(row.id, row.duration)
        _of_whom(census, row)
        if row.text and not row.text.isspace():
            _text(census, row, row.text)
        else:
            census.without["text"] += 1
        on_row(done)
    return census


def _of_whom(census: Census, row: Utterance) -> None:
    if row.speaker is None:
        census.without["speaker"] += 1
    else:
        census.speaker_seconds[row.speaker] += row.duration  # type: ignore[assignment]
    if row.lang is None:
        census.without["lang"] += 1
    else:
        census.lang_seconds[row.lang] += row.duration  # type: ignore[assignment]
        census.lang_rows[row.lang] += 1


def _text(census: Census, row: Utterance, text: str) -> None:
    size = len(text)
    census.characters.append(size)
    census.rates.append(size / row.duration)
    census._texts.append(row.id)
    census.alphabet.update(text)
    if not text.isascii() or not text.isprintable():
        for letter in set(text):
            if letter not in census.first and oddity(letter):
                census.first[letter] = row.id
        if not unicodedata.is_normalized("NFC", text):
            census.not_nfc_rows += 1
            census.not_nfc += [row.id] * (census.not_nfc_rows <= KEPT)
    frames = emission_frames(row.samples)
    if 2 * (size + 1) > frames and frames_needed(letters(text)) > frames:
        census.infeasible_rows += 1
        census.infeasible += [row.id] * (census.infeasible_rows <= KEPT)


def oddity(letter: str) -> str:
    """What is odd about a letter of a transcript whatever the language, or nothing."""
    if letter == " ":
        return ""
    if letter in BIDI:
        return "direction of writing"
    if letter == "\ufffd":
        return "stands for what was lost in a conversion"
    return _KINDS.get(unicodedata.category(letter), "")


class Bar(NamedTuple):
    """One bar of a histogram: values from ``low`` up to ``high`` (not included)."""

    low: float
    high: float
    rows: int


def histogram(values: Sequence[float], bars: int = 12) -> list[Bar]:
    """About ``bars`` bars of a round width; the last takes the upper hundredth, however far."""
    found = np.asarray(values, dtype=np.float64)
    if not len(found):
        return []
    least, top = float(found.min()), float(np.quantile(found, 0.99, method="higher"))
    span = top - least if top - least > 1e-6 * top else max(top, 1e-6)
    width = _round_up(span / bars)
    if np.issubdtype(np.asarray(values).dtype, np.integer):
        width = max(width, 1.0)
    low = np.floor(least / width) * width
    count = int(np.floor((top - low) / width)) + 1
    edges = low + width * np.arange(count + 1)
    edges[0] = min(edges[0], least)
    edges[-1] = max(edges[-1], np.nextafter(found.max(), np.inf))
    heights, _ = np.histogram(found, edges)
    return [
        Bar(round(float(a), 9), round(float(b), 9), int(n))
        for a, b, n in zip(edges, edges[1:], heights, strict=False)
    ]


def _round_up(width: float) -> float:
    """The next of 1, 2, 5, 10, 20, … at this order of magnitude."""
    unit = 10.0 ** np.floor(np.log10(width))
    return float(next(unit * step for step in (1, 2, 5, 10) if unit * step >= width * 0.999))
