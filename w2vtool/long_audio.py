"""Log-probabilities of audio of any length, in bounded memory.

Goes in: a row of a manifest and a CTC model. Goes out: its log-probabilities, chunk after chunk.
The network hears each chunk with some audio before and after it, and the frames of that context are
dropped; chunks begin where frames begin, so frame for frame it is what one pass would give, as
far as the network does not hear farther than the context.

What does: attention looks at the whole chunk with its context, and no farther. In models with group
norm the first layer's statistics are those of the chunk, not of the recording. The waveform of
models that normalise it is normalised by the whole recording, which is read twice for that.
"""

# S samples   T frames   V tokens

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch

from w2vtool.audio import SAMPLE_RATE
from w2vtool.device import autocast
from w2vtool.emissions import Job, Precision, halve, too_short
from w2vtool.model.encoder import FeatureEncoder
from w2vtool.model.heads import CtcModel

NORMALIZE_EPS = 1e-5  # of ``encoder.normalize``
READ_SAMPLES = 60 * SAMPLE_RATE


class Window(NamedTuple):
    """Frames ``begin``…``end`` that the network computes; ``first``…``last`` of them are kept."""

    begin: int
    end: int
    first: int
    last: int


def windows(frames: int, chunk: int, context: int) -> Iterator[Window]:
    """Windows that keep every frame once; ``chunk`` frames each but for the last."""
    for first in range(0, frames, chunk):
        last = min(frames, first + chunk)
        yield Window(max(0, first - context), min(frames, last + context), first, last)


def field(encoder: FeatureEncoder) -> tuple[int, int]:
    """Samples that one frame sees, and between two frames: 400 and 320."""
    sees, hop = 1, 1
    for kernel, stride in encoder.strides:
        sees += (kernel - 1) * hop
        hop *= stride
    return sees, hop


def piece(job: Job, start: int, stop: int) -> np.ndarray:
    """Samples start…stop at 16 kHz of a row: float32 ``[S]``."""
    source, row = job
    offset = row.offset + start / SAMPLE_RATE
    part = replace(row, offset=offset, duration=(stop - start) / SAMPLE_RATE)
    return source.audio(part)


def level(job: Job) -> tuple[float, float]:
    """Mean and standard deviation of all samples of a row, read piece by piece.

    Pieces are joined without cancellation (Chan, Golub & LeVeque 1983).
    """
    count, mean, squares = 0, 0.0, 0.0
    samples = job[1].samples
    for start in range(0, samples, READ_SAMPLES):
        wave = piece(job, start, min(samples, start + READ_SAMPLES)).astype(np.float64)
        own, more = float(wave.mean()), len(wave)
        delta, count = own - mean, count + more
        mean += delta * more / count
        squares += float(((wave - own) ** 2).sum()) + delta**2 * more * (count - more) / count
    return mean, math.sqrt(squares / count + NORMALIZE_EPS)


def log_probabilities(
    job: Job,
    model: CtcModel,
    *,
    device: torch.device,
    chunk_seconds: float,
    context_seconds: float,
    precision: Precision = "float32",
) -> Iterator[np.ndarray]:
    """``[T, V]`` float32 natural logs of each chunk.

    Raises AudioError for a row that cannot be read, or is too short for a single frame.
    """
    body = model.wav2vec2
    model.to(device).eval()
    if precision == "bf16":
        halve(body)
    sees, hop = field(body.feature_encoder)
    _, row = job
    frames = int(body.feature_encoder.frames(torch.tensor(row.samples)))
    if not frames:
        raise too_short(job, row.samples)
    mean, deviation = level(job) if body.architecture.normalize else (0.0, 1.0)
    chunk = max(1, round(chunk_seconds * SAMPLE_RATE / hop))
    context = math.ceil(context_seconds * SAMPLE_RATE / hop)
    for window in windows(frames, chunk, context):
        stop = row.samples if window.end == frames else (window.end - 1) * hop + sees
        wave = piece(job, window.begin * hop, stop)
        if body.architecture.normalize:
            wave = ((wave - mean) / deviation).astype(np.float32)
        with torch.inference_mode(), autocast(device, precision):
            logits_1TV, _ = model(torch.from_numpy(wave)[None].to(device), None)
            logp_TV = logits_1TV[0].float().log_softmax(-1).cpu().numpy()
        yield logp_TV[window.first - window.begin : window.last - window.begin]
