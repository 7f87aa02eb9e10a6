"""The grammar of the demo corpus: digits and short commands of our own, and seeded choices.

In: a seed. Out: upper-case sentences of 3 to 8 words, A-Z and single spaces, over about 40 words.
"""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

import numpy as np

SEED = 20
T = TypeVar("T")

DIGITS = ["ZERO", "ONE", "TWO", "THREE", "FOUR", "FIVE", "SIX", "SEVEN", "EIGHT", "NINE"]
# the rare ones are what a language model and a lexicon have to carry
ROOMS = ["", "KITCHEN", "BEDROOM", "GARAGE"]
ROOM_WEIGHTS = [0.60, 0.25, 0.10, 0.05]


class Dice:
    """Seeded choices that stay the same on every version of Python and numpy.

    Why: numpy freezes the streams of RandomState; Python and numpy's Generator promise less.
    """

    def __init__(self, *key: object) -> None:
        self.state = np.random.RandomState(zlib.crc32(repr((SEED, *key)).encode()))

    def between(self, low: float, high: float) -> float:
        """Return a number from the half-open interval."""
        return low + (high - low) * float(self.state.random_sample())

    def chance(self, probability: float) -> bool:
        """Return True with this probability."""
        return self.between(0, 1) < probability

    def pick(self, items: Sequence[T], weights: Sequence[float] | None = None) -> T:
        """Return one of the items, all alike or by weight."""
        if weights is None:
            return items[int(self.between(0, len(items)))]
        rest = self.between(0, sum(weights))
        for item, weight in zip(items, weights, strict=True):
            rest -= weight
            if rest < 0:
                return item
        return items[-1]

    def words(self, text: str) -> str:
        """Return one of the words of the text."""
        return self.pick(text.split())


def _digits(dice: Dice, least: int, most: int) -> str:
    count = int(dice.between(least, most + 1))
    return " ".join(dice.pick(DIGITS) for _ in range(count))


def _door(dice: Dice) -> str:
    room = dice.pick(ROOMS, ROOM_WEIGHTS)
    thing = dice.pick(["DOOR", "WINDOW"], [0.7, 0.3])
    return f"{dice.words('OPEN CLOSE')} THE {room} {thing}"


def _light(dice: Dice) -> str:
    thing = dice.pick(["LIGHT", "MUSIC"], [0.8, 0.2])
    room, switch = dice.pick(ROOMS, ROOM_WEIGHTS), dice.words("ON OFF")
    return (
        f"TURN {switch} THE {room} {thing}"
        if dice.chance(0.5)
        else f"TURN THE {room} {thing} {switch}"
    )


def _volume(dice: Dice) -> str:
    if dice.chance(0.5):
        return f"TURN THE VOLUME {dice.words('UP DOWN')}"
    return f"SET VOLUME {_digits(dice, 1, 2)}"


def _move(dice: Dice) -> str:
    way = dice.words("LEFT RIGHT")
    kinds = [f"TURN {way} AND STOP", f"GO {way} {dice.pick(DIGITS)}"]
    kinds += [
        f"GO {dice.words('UP DOWN')} AND {way}",
        f"GO {dice.words('UP DOWN')} {_digits(dice, 1, 2)}",
    ]
    return dice.pick(kinds)


def _timer(dice: Dice) -> str:
    if dice.chance(0.6):
        return f"SET TIMER {_digits(dice, 1, 2)} MINUTES"
    return f"{dice.pick(['STOP', 'SET', 'CANCEL'], [0.5, 0.3, 0.2])} THE TIMER"


def _play(dice: Dice) -> str:
    kinds = [f"PLAY SONG {_digits(dice, 1, 3)}", "PLAY THE NEXT SONG", "STOP THE MUSIC"]
    kinds += ["PLAY THE MUSIC", "PAUSE THE MUSIC", f"GO BACK {dice.pick(DIGITS)}"]
    return dice.pick(kinds, [0.4, 0.2, 0.12, 0.12, 0.1, 0.06])


KINDS: list[tuple[Callable[[Dice], str], float]] = [
    (lambda dice: _digits(dice, 3, 6), 0.12),
    (lambda dice: f"CALL {_digits(dice, 3, 5)}", 0.08),
    (_door, 0.16),
    (_light, 0.18),
    (_volume, 0.10),
    (_move, 0.12),
    (_timer, 0.10),
    (_play, 0.10),
]


def sentence(dice: Dice) -> str:
    """Return a sentence of the grammar: 3 to 8 words of A-Z."""
    makers, weights = zip(*KINDS, strict=True)
    text = dice.pick(makers, weights)(dice)
    second = dice.pick(makers[2:], weights[2:])(dice)
    if dice.chance(0.5) and len(f"{text} AND {second}".split()) <= 8:
        text += f" AND {second}"
    if dice.chance(0.25) and len(text.split()) <= 7:
        text = f"PLEASE {text}" if dice.chance(0.4) else f"{text} PLEASE"
    return " ".join(text.split())


def is_held_out(text: str) -> bool:
    """Say whether a sentence is kept for valid and test: one in six of those of 4 words or more.

    Why by checksum: taking what test happened to draw out of train would take the commonest
    commands, and leave the splits with different words.
    """
    return len(text.split()) >= 4 and zlib.crc32(text.encode()) % 6 == 0


def sentences(
    name: str, count: int, *, held_out: bool, repeats: int, shun: Iterable[str] = ()
) -> list[str]:
    """Return ``count`` sentences, none in ``shun`` and none more often than ``repeats``."""
    dice, out = Dice("sentences", name), list[str]()
    times = Counter(dict.fromkeys(shun, repeats))
    while len(out) < count:
        text = sentence(dice)
        if is_held_out(text) == held_out and times[text] < repeats:
            out.append(text)
            times[text] += 1
    return out
