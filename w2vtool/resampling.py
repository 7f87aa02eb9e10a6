"""Other sample rates to 16 kHz: which samples of a file a part of the result depends on.

Goes in: mono samples ``[S]`` at a file's own rate. Goes out: ``[S]`` at 16 kHz, with torchaudio's
windowed sinc (6 zero crossings, Hann window), as ``torchaudio.transforms.Resample`` makes it.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import numpy as np

from w2vtool.sources import SAMPLE_RATE, Info

_MAX_KERNEL_TAPS = 16_000_000  # 64 MB; only rates like 15,999 Hz need more


def has_kernel(rate: int) -> bool:
    """Whether the rate has a ratio to 16 kHz that is short enough for a filter."""
    common = math.gcd(rate, SAMPLE_RATE)
    return (rate // common) * (SAMPLE_RATE // common) <= _MAX_KERNEL_TAPS


def needed(info: Info, start: int, stop: int) -> tuple[int, int, int]:
    """First and last + 1 sample of the file that samples start…stop at 16 kHz depend on.

    The third number is the sample at 16 kHz that the first one meets. The two grids meet every
    ``step_in`` samples of the file; the part begins at such a point, early enough that the filter
    sees the same neighbours as in a read of the whole file.
    """
    common = math.gcd(info.sample_rate, SAMPLE_RATE)
    step_in, step_out = info.sample_rate // common, SAMPLE_RATE // common
    margin = 8 * info.sample_rate // min(info.sample_rate, SAMPLE_RATE) + 8  # filter: 6 crossings
    first = max(0, (start * step_in // step_out - margin) // step_in)
    last = min(info.frames, -(-stop * step_in // step_out) + margin)
    return first * step_in, last, first * step_out


def resample(samples: np.ndarray, rate: int) -> np.ndarray:
    """Samples at 16 kHz; the last one belongs to a time within the file."""
    import torch

    with torch.inference_mode():
        resampled: torch.Tensor = _resampler(rate)(torch.from_numpy(np.ascontiguousarray(samples)))
        return resampled.numpy()


@cache
def _resampler(rate: int) -> Any:
    """Resampler from ``rate`` to 16 kHz; its filter takes longer to make than to use."""
    from torchaudio.transforms import Resample

    return Resample(rate, SAMPLE_RATE)
