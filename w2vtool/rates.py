"""The policy for sample rates other than 16 kHz: resampled, or with ``strict_rate`` refused.

Goes in: how many files have which rate. Goes out: nothing, or a DataError with all of the counts.
"""

from __future__ import annotations

from collections.abc import Mapping

from w2vtool.audio import SAMPLE_RATE
from w2vtool.errors import DataError


def refuse_others(counts: Mapping[int, int], where: str) -> None:
    """Raise DataError when there is audio at another rate; ``counts`` is files by rate in Hz."""
    others = {rate: count for rate, count in sorted(counts.items()) if rate != SAMPLE_RATE}
    if others:
        total = sum(others.values())
        named = ", ".join(f"{count:,} at {rate:,} Hz" for rate, count in others.items())
        raise DataError(
            f"{total:,} file{' is' if total == 1 else 's are'} not at 16,000 Hz: {named}",
            where=where,
            hint="convert them, or let them be resampled: leave out strict_rate",
        )
