"""A model over utterances: log-probabilities for decoding, named layers for extraction.

Goes in: a model and rows of manifests. Goes out: one array per row, in the order of the rows,
a bounded number of them in memory at a time.

Why equal-length batches: padding alone moves the output of a group-norm model by a quarter (its
statistics run over time; facts §10), so rows share a batch only if they are equally long. Models
with layer norms may be padded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from w2vtool import corpora, manifest
from w2vtool.audio import SAMPLE_RATE
from w2vtool.errors import DataError
from w2vtool.manifest import Manifest, Utterance
from w2vtool.model.encoder import Wav2Vec2, normalize
from w2vtool.model.heads import CtcModel

Job = tuple[Manifest, Utterance]
T = TypeVar("T")
CHUNK_ROWS = 256  # rows that are sorted by length, and held, together
MIN_SAMPLES = 400  # one frame


def open_inputs(
    paths: Sequence[Path], *, jobs: int = 1, say: Callable[[str], None] = lambda text: None
) -> list[Job]:
    """Rows of audio files, folders and manifests, in the order given.

    Files that cannot be used are named through ``say`` and left out; raises DataError if none is
    left, or an input does not exist.
    """
    rows: list[Job] = []
    for path in paths:
        if path.suffix == ".jsonl":
            opened = manifest.read(path)
            rows += [(opened, row) for row in opened.rows]
            continue
        found = corpora.scan(path)
        built = manifest.build(found.candidates, jobs=jobs)
        rejected = [*found.problems, *built.rejected]
        if not built.rows:
            first = rejected[0] if rejected else None
            raise DataError(
                first.detail if first else "no audio found",
                where=first.path if first else str(path),
            )
        for item in rejected:
            say(f"left out: {item.path}: {item.detail} ({item.reason})")
        made = Manifest(Path.cwd() / "-", built.rows, "")
        rows += [(made, row) for row in built.rows]
    return rows


def over(
    rows: Sequence[Job],
    model: nn.Module,
    body: Wav2Vec2,
    compute: Callable[[Tensor, Tensor | None], list[T]],
    device: torch.device,
    batch_seconds: float,
) -> Iterator[tuple[Utterance, T]]:
    """``compute(wave_BS, samples_B)`` over all rows, in batches; gives rows in their order.

    Raises DataError for a row too short for a single frame.
    """
    model.to(device).eval()
    for start in range(0, len(rows), CHUNK_ROWS):
        chunk = rows[start : start + CHUNK_ROWS]
        results: dict[int, T] = {}
        for batch in _batches(chunk, body, batch_seconds):
            waves = [wave for _, wave in batch]
            lengths = torch.tensor([len(wave) for wave in waves])
            padded = torch.nn.utils.rnn.pad_sequence(waves, batch_first=True).to(device)
            equal = bool((lengths == lengths[0]).all())
            with torch.no_grad():
                values = compute(padded, None if equal else lengths.to(device))
            results.update(zip((index for index, _ in batch), values, strict=True))
        for index, (_, row) in enumerate(chunk):
            yield row, results.pop(index)


def _batches(
    chunk: Sequence[Job], body: Wav2Vec2, batch_seconds: float
) -> Iterator[list[tuple[int, Tensor]]]:
    """Rows of a chunk by length, as batches of (index in the chunk, samples)."""
    may_pad = body.architecture.extractor_norm == "layer"
    batch: list[tuple[int, Tensor]] = []
    for index in sorted(range(len(chunk)), key=lambda i: chunk[i][1].samples):
        source, row = chunk[index]
        wave = torch.from_numpy(source.audio(row))
        if len(wave) < MIN_SAMPLES:
            raise DataError(
                f"{len(wave)} samples are too short for one frame ({MIN_SAMPLES})",
                where=f"{source.path} ({row.id})",
            )
        wave = normalize(wave) if body.architecture.normalize else wave
        full = (len(batch) + 1) * len(wave) > batch_seconds * SAMPLE_RATE
        unequal = bool(batch) and len(batch[0][1]) != len(wave) and not may_pad
        if batch and (full or unequal):
            yield batch
            batch = []
        batch.append((index, wave))
    if batch:
        yield batch


def log_probabilities(
    rows: Sequence[Job], model: CtcModel, *, device: torch.device, batch_seconds: float = 60.0
) -> Iterator[tuple[Utterance, np.ndarray]]:
    """``[T, V]`` float32 natural logs of every row."""

    def compute(wave_BS: Tensor, samples_B: Tensor | None) -> list[np.ndarray]:
        logits, frames_B = model(wave_BS, samples_B)
        logp = logits.float().log_softmax(-1).cpu().numpy()
        return _cut(list(logp), frames_B)

    yield from over(rows, model, model.wav2vec2, compute, device, batch_seconds)


def layers(
    rows: Sequence[Job],
    model: Wav2Vec2,
    names: Sequence[str],
    *,
    device: torch.device,
    batch_seconds: float = 60.0,
) -> Iterator[tuple[Utterance, dict[str, np.ndarray]]]:
    """The named layers of every row, each ``[T, width]`` float32.

    Names (facts §9.3): ``conv`` (latents), ``0`` (input of the Transformer), ``1``… (output of a
    block, without the final LayerNorm of pre-LN models), ``final`` (the context network's output).
    """

    def compute(wave_BS: Tensor, samples_B: Tensor | None) -> list[dict[str, np.ndarray]]:
        context = model(wave_BS, samples_B, layers=names)
        values = {**context.layers, "final": context.x_BTD}
        arrays = {
            name: _cut(list(values[name].float().cpu().numpy()), context.frames_B) for name in names
        }
        return [{name: arrays[name][i] for name in names} for i in range(len(wave_BS))]

    yield from over(rows, model, model, compute, device, batch_seconds)


def _cut(arrays: list[np.ndarray], frames_B: Tensor | None) -> list[np.ndarray]:
    if frames_B is None:
        return arrays
    return [array[:frames] for array, frames in zip(arrays, frames_B.tolist(), strict=True)]
