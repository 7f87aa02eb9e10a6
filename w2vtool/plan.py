"""The stateless batch plan: which utterances form which micro-batch, at any point of training.

Goes in: lengths, a manifest hash, a seed. Goes out: ``Bin`` number n, for any n, at once. A bin is
a micro-batch of utterances of similar length; an update consumes ``bins`` of them, spread over the
processes. Everything is a pure function of (manifest hash, seed, n), so that order is independent
of workers and ranks, resuming is exact and costs nothing, and the number of processes may change.

Why hashes instead of a generator: numpy's streams may change between versions, a hash does not, and
any element of it can be computed alone.

Why a quadratic term: attention looks at all pairs of frames, so twenty seconds in one piece cost
more than in two. Bins of equal seconds then differ in time and memory, and the longest decide how
large bins can be. A training with lhotse, on utterances of 5 to 6 s, had room for bins of 450 s
where 250 s was the limit, at q = 30 s (lhotse-speech/lhotse#950).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from w2vtool.errors import DataError

MAX_BUCKETS = 100
BINS_PER_BUCKET = 4  # fewer would leave many bins half empty, more would mix lengths


@dataclass(frozen=True)
class Bin:
    """One micro-batch: rows of the manifest, and a key per row for all that is random about it."""

    number: int
    epoch: int
    rows: np.ndarray  # int64
    keys: np.ndarray  # int64, one per row; differs in every epoch
    key: int  # of the bin as a whole: dropout, LayerDrop
    # Seconds of the shortest and the longest row of the bucket. Cropped or padded to these, all
    # bins of a bucket have one shape: kernels are prepared, graphs compiled, once a bucket (on
    # CPUs oneDNN's preparation was 40 % of a small model's step).
    shortest: float = math.inf
    longest: float = 0.0


def mix(x: np.ndarray) -> np.ndarray:
    """The finaliser of splitmix64 (Steele, Lea & Flood 2014) over uint64."""
    with np.errstate(over="ignore"):
        x = x + np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return x ^ (x >> np.uint64(31))


def key(*words: int) -> int:
    """One 63-bit number from several."""
    state = np.zeros(1, np.uint64)
    for word in words:
        state = mix(state ^ np.uint64(word & 0xFFFFFFFFFFFFFFFF))
    return int(state[0] >> np.uint64(1))


class Plan:
    """Bins of at most ``bin_seconds`` audio each; an utterance counts ``max_seconds`` at most.

    With ``quadratic_seconds`` q, an utterance of s seconds takes s + s² / q of them.

    Rows shorter than ``min_seconds`` are left out (``left_out`` counts them); with ``crop`` false
    so are rows over ``max_seconds``. Rows lie in buckets of similar length; an epoch shuffles the
    rows within their bucket, cuts each bucket into bins, and shuffles the bins.
    Raises DataError when no row is left, or a row is longer than a bin.
    """

    def __init__(
        self,
        seconds: np.ndarray,
        *,
        bin_seconds: float,
        min_seconds: float,
        max_seconds: float,
        crop: bool,
        seed: int,
        source: str,
        quadratic_seconds: float | None = None,
    ) -> None:
        self._pairs = 1 / quadratic_seconds if quadratic_seconds else 0.0
        usable = seconds >= min_seconds
        if not crop:
            usable &= seconds <= max_seconds
        self.left_out = int((~usable).sum())
        rows = np.flatnonzero(usable)
        if not len(rows):
            raise DataError(
                f"none of {len(seconds)} utterances is between {min_seconds} and {max_seconds} s",
                hint="see min_seconds and max_seconds of the recipe",
            )
        lengths = np.minimum(seconds[rows], max_seconds)
        if self._cost(lengths.max()) > bin_seconds:
            counted = f", which counts {self._cost(lengths.max()):.1f} s," if self._pairs else ""
            what = f"an utterance of {lengths.max():.1f} s{counted} does not fit"
            raise DataError(
                f"{what} a bin of {bin_seconds} s",
                hint="raise bin_seconds or lower max_seconds",
            )
        order = np.argsort(lengths, kind="stable")
        lengths = lengths[order]
        small = len(seconds) <= np.iinfo(np.int32).max  # 30 M rows are 120 MB then
        self._rows = rows[order].astype(np.int32 if small else np.int64)
        costs = self._cost(lengths)
        total_bins = costs.sum() / bin_seconds
        buckets = int(np.clip(total_bins // BINS_PER_BUCKET, 1, MAX_BUCKETS))
        share = np.cumsum(costs) / costs.sum()
        edges = np.searchsorted(share, np.arange(1, buckets) / buckets)
        self._edges = np.unique(np.concatenate([[0], edges, [len(rows)]]))
        longest = self._longest = lengths[self._edges[1:] - 1]
        self._shortest = lengths[self._edges[:-1]]
        sizes = np.diff(self._edges)
        length = self._shortest if crop else longest
        capacity = np.maximum(1, (bin_seconds / self._cost(length)).astype(np.int64))
        self._bins = -(-sizes // capacity)  # per bucket
        self._first_bin = np.concatenate([[0], np.cumsum(self._bins)[:-1]])
        self._base = key(seed, int(source[:15] or "0", 16))
        self._crop, self.max_seconds = crop, max_seconds
        self._orders: dict[int, np.ndarray] = {}  # of the last two epochs: their bins, shuffled
        self._epoch = -1
        self._shuffled: dict[int, np.ndarray] = {}  # rows of the buckets that it has met so far
        self.bins_per_epoch = int(self._bins.sum())
        self.utterances = len(rows)
        self.seconds = float(lengths.sum())

    def bin(self, number: int) -> Bin:
        """Bin ``number`` of the endless stream."""
        epoch, place = divmod(number, self.bins_per_epoch)
        if self._epoch != epoch:
            self._epoch, self._shuffled = epoch, {}
        index = int(self._order(epoch)[place])
        bucket = int(np.searchsorted(self._first_bin, index, side="right")) - 1
        shuffled = self._bucket(bucket)
        part, parts, size = index - int(self._first_bin[bucket]), self._bins[bucket], len(shuffled)
        rows = shuffled[part * size // parts : (part + 1) * size // parts].astype(np.int64)
        stream = np.uint64(key(self._base, epoch))
        keys = (mix(stream ^ mix(rows.astype(np.uint64))) >> np.uint64(1)).astype(np.int64)
        shortest, longest = float(self._shortest[bucket]), float(self._longest[bucket])
        return Bin(number, epoch, rows, keys, key(self._base, number, 1), shortest, longest)

    def costs(self, numbers: np.ndarray) -> np.ndarray:
        """Seconds that bins with these numbers take, ``[bins]``, as cropped or padded.

        With ``quadratic_seconds``, they are counted as above. The rows are not looked at.
        """
        epochs, places = np.divmod(numbers, self.bins_per_epoch)
        indices = np.zeros(len(numbers), np.int64)
        for epoch in np.unique(epochs).tolist():
            indices[epochs == epoch] = self._order(epoch)[places[epochs == epoch]]
        buckets = np.searchsorted(self._first_bin, indices, side="right") - 1
        part, parts = indices - self._first_bin[buckets], self._bins[buckets]
        size = np.diff(self._edges)[buckets]
        rows = (part + 1) * size // parts - part * size // parts
        lengths = (self._shortest if self._crop else self._longest)[buckets]
        return rows * self._cost(lengths)

    def _cost(self, seconds: Any) -> Any:
        return seconds + seconds * seconds * self._pairs if self._pairs else seconds

    def _order(self, epoch: int) -> np.ndarray:
        """Bins of an epoch in their order. Two are kept: an update may have bins of two epochs."""
        if epoch not in self._orders:
            kept = list(self._orders.items())[-1:]
            order = self._shuffle(self.bins_per_epoch, epoch, 0).astype(np.int32)
            self._orders = dict([*kept, (epoch, order)])
        return self._orders[epoch]

    def _bucket(self, bucket: int) -> np.ndarray:
        """Rows of a bucket in the order of this epoch; sorting 100,000 for every bin takes 9 ms."""
        if bucket not in self._shuffled:
            rows = self._rows[self._edges[bucket] : self._edges[bucket + 1]]
            self._shuffled[bucket] = rows[self._shuffle(len(rows), self._epoch, bucket + 1)]
        return self._shuffled[bucket]

    def portion(self, seconds: float) -> int:
        """How many bins hold about so much audio: a number that many processes can share.

        That is, of the numbers within an eighth of the exact one, that which can be halved most
        often; or, where that is no multiple of 8, within a third. So it is a multiple of 8, or of
        few bins a power of two. It does not depend on the processes at hand: a run that goes on
        with more of them must hear the same.
        """
        wanted = max(1.0, seconds / (self.seconds / self.bins_per_epoch))
        best = 1
        for slack in (1 / 8, 1 / 3):
            low, high = wanted * (1 - slack), wanted * (1 + slack)
            for exponent in range(int(wanted).bit_length(), -1, -1):
                best = max(1, round(wanted / 2**exponent)) << exponent
                if low <= best <= high:
                    break
            if best % 8 == 0:
                return best
        return best

    def _shuffle(self, size: int, epoch: int, stream: int) -> np.ndarray:
        counter = np.arange(size, dtype=np.uint64)
        return np.argsort(mix(counter ^ np.uint64(key(self._base, epoch, stream))), kind="stable")
