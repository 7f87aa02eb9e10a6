"""A manifest cut into parts with no speaker in two of them: train, valid, test.

Goes in: rows, and how much each part is to hold. Goes out: the number of the part for each row.

Speakers are gone through in an order hashed from the seed and their name; each goes to the part in
which it does most good to a chi-square of what the parts hold against what they should: audio in
all, audio of each language, and audio of short, middling and long rows. Then single speakers move
while that makes it better. So a part is near its size and made like the whole, a speaker that is
too long for a small part stays out of it, and the order of the rows does not matter.

Why a row without a speaker counts as a speaker of its own: there is nothing else to go by. Whoever
knows better writes the speakers first; ``unknown`` says how many rows that was done for.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from w2vtool.audio import SAMPLE_RATE
from w2vtool.errors import ConfigError, DataError
from w2vtool.manifest import Utterance

MAX_LANGS = 30  # the rest count as one
MOVES_FOR = 20_000  # speakers up to which single ones are moved; more are fine enough as they are
PASSES = 10
_AMOUNT = re.compile(r"(?P<number>[0-9]*\.?[0-9]+)(?P<unit>%|h|min|s)?")
_SECONDS = {"h": 3600, "min": 60, "s": 1}
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


class Part(NamedTuple):
    """A part as asked for: a share of the audio, seconds, or rows; ``rest`` without any."""

    name: str
    share: float | None = None
    seconds: float | None = None
    rows: int | None = None


@dataclass(frozen=True)
class Parts:
    """``of_row`` is the part of each row (uint8), one past the last for rows in no part."""

    of_row: np.ndarray
    wanted: tuple[float, ...]  # seconds
    unknown: int  # rows without a speaker


def parse(words: Iterable[str]) -> list[Part]:
    """``train=0.9``, ``valid=5%``, ``test=2h``, ``extra=500`` (rows), ``train=rest``."""
    parts = [_part(word) for word in words]
    names = [part.name for part in parts]
    if len(set(names)) < len(names):
        raise ConfigError("a part stands twice", where="--parts")
    if sum(part == Part(part.name) for part in parts) > 1:
        raise ConfigError("only one part can be the rest", where="--parts")
    if sum(part.share or 0 for part in parts) > 1 + 1e-9:
        raise ConfigError("the shares add up to more than 1", where="--parts")
    if not 1 <= len(parts) <= 200:
        raise ConfigError(f"{len(parts)} parts; give 1 to 200", where="--parts")
    return parts


def _part(word: str) -> Part:
    name, _, amount = word.partition("=")
    match = _AMOUNT.fullmatch(amount)
    hint = "NAME=AMOUNT: 0.9 or 90% of the audio, 2h, 30min, 500 (rows), rest"
    if not _NAME.fullmatch(name) or (match is None and amount != "rest"):
        raise ConfigError(f"{word!r} is not a part", where="--parts", hint=hint)
    if match is None:
        return Part(name)
    number, unit = float(match["number"]), match["unit"]
    if not number:
        raise ConfigError(f"{word!r} is empty", where="--parts", hint=hint)
    if unit in _SECONDS:
        return Part(name, seconds=number * _SECONDS[unit])
    if unit == "%" or "." in match["number"]:
        share = number / 100 if unit else number
        if share > 1:
            raise ConfigError(f"{word!r} is more than all", where="--parts", hint=hint)
        return Part(name, share=share)
    return Part(name, rows=int(number))


def split(
    rows: Sequence[Utterance],
    parts: Sequence[Part],
    *,
    seed: int = 0,
    on_row: Callable[[int], None] = lambda done: None,
) -> Parts:
    """Find the part of each row. DataError when there is too little audio, or a part gets none."""
    names, group_of, samples, langs = _groups(rows, on_row)
    unknown = sum(name[0] == "row" for name in names)
    total, mean = float(samples.sum()) / SAMPLE_RATE, float(samples.mean()) / SAMPLE_RATE
    wanted = _wanted(parts, total, mean)
    features_GF = _features(len(names), group_of, samples, langs) / SAMPLE_RATE
    left = total - sum(wanted)
    targets = [*wanted, left] if left > 1e-6 * total else list(wanted)
    order = sorted(range(len(names)), key=lambda i: _place(seed, names[i]))
    of_group = _assign(features_GF, np.array(targets), order)
    found = Parts(of_group[group_of].astype(np.uint8), tuple(wanted), unknown)
    _check(found, parts, len(names))
    return found


def _groups(
    rows: Iterable[Utterance], on_row: Callable[[int], None]
) -> tuple[list[tuple[str, str]], np.ndarray, np.ndarray, list[str]]:
    """Names of groups; and per row its group, its samples and its language."""
    index: dict[tuple[str, str], int] = {}
    group_of, samples, langs = [], [], []
    for done, row in enumerate(rows, start=1):
        key = ("speaker", row.speaker) if row.speaker is not None else ("row", row.id)
        group_of.append(index.setdefault(key, len(index)))
        samples.append(row.samples)
        langs.append(row.lang or "")
        on_row(done)
    return list(index), np.array(group_of), np.array(samples, dtype=np.int64), langs


def _wanted(parts: Sequence[Part], total: float, mean: float) -> list[float]:
    """Seconds of each part."""
    found = [part.seconds or (part.share or 0) * total or (part.rows or 0) * mean for part in parts]
    over = sum(found) - total
    if over > 1e-6 * total:
        what = f"the parts take {sum(found) / 3600:.2f} h, and there are {total / 3600:.2f} h"
        raise DataError(what, where="--parts", hint="make them smaller, or one of them rest")
    rest = [i for i, part in enumerate(parts) if part == Part(part.name)]
    if rest and -over <= 1e-6 * total:
        raise DataError("nothing is left for the rest", where="--parts", hint="make others smaller")
    if rest:
        found[rest[0]] = -over
    return found


def _features(
    groups: int, group_of: np.ndarray, samples: np.ndarray, langs: Sequence[str]
) -> np.ndarray:
    """``[G, F]``: samples of each group in all, of each language, and of each third by length."""
    most = [lang for lang, _ in Counter(langs).most_common(MAX_LANGS)]
    number = {lang: 1 + i for i, lang in enumerate(sorted(most))}
    of_lang = np.array([number.get(lang, len(number) + 1) for lang in langs])
    thirds = np.quantile(samples, [1 / 3, 2 / 3], method="higher")
    of_length = len(number) + 2 + np.searchsorted(thirds, samples)
    found_GF = np.zeros((groups, len(number) + 5))
    for feature in (np.zeros(len(samples), dtype=np.int64), of_lang, of_length):
        np.add.at(found_GF, (group_of, feature), samples)
    return found_GF[:, found_GF.any(axis=0)]


def _place(seed: int, name: tuple[str, str]) -> bytes:
    text = f"{seed}\0{name[0]}\0{name[1]}"
    return hashlib.blake2b(text.encode(), digest_size=8).digest()


def _assign(features_GF: np.ndarray, targets: np.ndarray, order: Sequence[int]) -> np.ndarray:
    """The part of each group ``[G]``. Lower is better: the sum of weight · (held − wanted)²."""
    share_F = features_GF.sum(axis=0) / features_GF[:, 0].sum()
    wanted_PF = targets[:, None] * share_F
    # the size of a part above its make-up; and rare features may not rule a small part
    weight_PF = 0.25 / (wanted_PF + 0.02 * targets[:, None])
    weight_PF[:, 0] = 1 / targets
    need_PF = wanted_PF.copy()  # what is still wanted
    found = np.zeros(len(features_GF), dtype=np.int64)
    for group in order:
        gain_P = (weight_PF * features_GF[group] * (features_GF[group] - 2 * need_PF)).sum(axis=1)
        found[group] = part = int(gain_P.argmin())
        need_PF[part] -= features_GF[group]
    if len(order) <= MOVES_FOR:
        for _ in range(PASSES):
            if not _move(features_GF, weight_PF, need_PF, found, order):
                break
    return found


def _move(
    features_GF: np.ndarray,
    weight_PF: np.ndarray,
    need_PF: np.ndarray,
    found: np.ndarray,
    order: Sequence[int],
) -> int:
    """Move single groups to where they do better; gives how many were moved."""
    moved = 0
    for group in order:
        part, held_F = found[group], features_GF[group]
        need_PF[part] += held_F  # as if it were nowhere
        gain_P = (weight_PF * held_F * (held_F - 2 * need_PF)).sum(axis=1)
        best = int(gain_P.argmin())
        if gain_P[best] < gain_P[part] - 1e-9:
            found[group], moved = best, moved + 1
        need_PF[found[group]] -= held_F
    return moved


def _check(found: Parts, parts: Sequence[Part], groups: int) -> None:
    counts = np.bincount(found.of_row, minlength=len(parts))
    empty = [part.name for part, rows in zip(parts, counts, strict=False) if not rows]
    if empty:
        what = f"nothing for {', '.join(empty)}: {groups} speakers in {len(parts)} parts"
        hint = "ask for larger parts; a speaker is never divided"
        raise DataError(what, where="--parts", hint=hint)
