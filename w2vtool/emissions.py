"""A model over utterances: log-probabilities for decoding, named layers for extraction.

Goes in: a model and rows of manifests. Goes out: one array per row, in the order of the rows,
a bounded number of them in memory at a time.

Why equal-length batches: padding alone moves the output of a group-norm model by a quarter (its
statistics run over time), so rows share a batch only if they are equally long. Models
with layer norms may be padded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from w2vtool import corpora, manifest
from w2vtool.audio import SAMPLE_RATE
from w2vtool.device import autocast
from w2vtool.errors import ConfigError, DataError
from w2vtool.manifest import Built, Manifest, Rejected, Utterance
from w2vtool.model.encoder import Wav2Vec2, normalize
from w2vtool.model.heads import CtcModel
from w2vtool.parts import PART_ROWS
from w2vtool.rates import refuse_others
from w2vtool.schema import DataConfig, TextConfig
from w2vtool.splits import known, open_split, remarks
from w2vtool.text import Rules

Job = tuple[Manifest, Utterance]
Precision = Literal["float32", "bf16"]
T = TypeVar("T")


def open_inputs(
    paths: Sequence[Path],
    *,
    jobs: int = 0,
    strict_rate: bool = False,
    say: Callable[[str], None] = lambda text: None,
) -> list[Job]:
    """Rows of audio files, folders, transcripts (``.tsv``) and manifests, in the order given.

    What is said once goes through ``say``: files of a folder that cannot be used and are left out,
    other sample rates, stereo. Raises DataError for every input without a usable file, and with
    ``strict_rate`` for audio that is not at 16 kHz.
    """
    inputs = list(dict.fromkeys(paths))
    opened = {path: manifest.read(path) for path in inputs if path.suffix == ".jsonl"}
    listed = Built()
    for found in opened.values():
        listed.resampled.update(known(found.rows).resampled)
    scans = _scan([path for path in inputs if path not in opened])
    built = manifest.build([item for scan in scans.values() for item in scan.candidates], jobs=jobs)
    rows = {row.id: replace(row, audio=str(Path(row.audio).absolute())) for row in built.rows}
    left_out: dict[Path, list[Rejected]] = {}
    for path, scan in scans.items():
        mine = [rows[item.id] for item in scan.candidates if item.id in rows]
        opened[path] = Manifest(path, mine, "")
        files = {str(item.path) for item in scan.candidates}
        rejected = [item for item in built.rejected if item.path in files]
        left_out[path] = [*scan.problems, *rejected]
    _refuse([left_out[path] for path in scans if not opened[path].rows])
    for item in (item for found in left_out.values() for item in found):
        say(f"left out: {item.path}: {item.detail} ({item.reason})")
    if strict_rate:
        refuse_others(listed.resampled + built.resampled, "the inputs")
    listed.resampled.update(built.resampled)
    for text in remarks(replace(built, resampled=listed.resampled)):
        say(text)
    return [(opened[path], row) for path in inputs for row in opened[path].rows]


def open_rows(
    inputs: Sequence[Path],
    split: str,
    data: DataConfig,
    text: TextConfig,
    *,
    jobs: int = 1,
    say: Callable[[str], None] = lambda text: None,
) -> list[Job]:
    """The rows of the inputs; without any, of the recipe's split. Raises ConfigError for neither.

    DataError as ``open_inputs``.
    """
    if inputs:
        return open_inputs(inputs, jobs=max(2, jobs), strict_rate=data.strict_rate, say=say)
    if not getattr(data, split):
        raise ConfigError(
            "nothing to transcribe", hint="name audio files, folders or manifests (.jsonl)"
        )
    opened = open_split(data, split, rules=Rules.of(text), say=say)
    return [(opened, row) for row in opened.rows]


def identify(job: Job) -> dict[str, Any]:
    """What a row is, for ``parts.cut``: all that the manifest says, and the size of the file."""
    source, row = job
    path = source.audio_path(row)
    try:
        size = path.stat().st_size
    except OSError:  # reading it will say so
        size = None
    return {**asdict(row), "audio": str(path.absolute()), "bytes": size}


def alone(rows: Sequence[Job]) -> list[Job]:
    """The rows without the rest of their manifests, to be sent to other processes."""
    sources: dict[Path, Manifest] = {}
    for source, _ in rows:
        if source.path not in sources:
            sources[source.path] = Manifest(source.path.absolute(), [], source.sha256)
    return [(sources[source.path], row) for source, row in rows]


def _scan(paths: Sequence[Path]) -> dict[Path, corpora.Scan]:
    """Utterances of each input; an id that was there before gives way to the path."""
    scans: dict[Path, corpora.Scan] = {}
    ids: set[str] = set()
    for path in paths:
        found, candidates = corpora.scan(path), []
        for item in found.candidates:
            if item.id in ids:
                item = item._replace(id=str(item.path.absolute().with_suffix("")).lstrip("/"))
            ids.add(item.id)
            candidates.append(item)
        scans[path] = corpora.Scan(candidates, found.problems)
    return scans


def _refuse(useless: list[list[Rejected]]) -> None:
    """Raise DataError for inputs of which nothing is left, each with its first reason."""
    facts = [(found[0].path, found[0].detail) for found in useless if found]
    if len(facts) == 1:
        raise DataError(facts[0][1], where=facts[0][0])
    if facts:
        shown = [f"{path}: {detail}" for path, detail in facts]
        raise DataError("\n  ".join([f"{len(facts)} inputs cannot be used", *shown]))


def over(
    rows: Sequence[Job],
    model: nn.Module,
    body: Wav2Vec2,
    compute: Callable[[Tensor, Tensor | None], list[T]],
    device: torch.device,
    batch_seconds: float,
    precision: Precision = "float32",
) -> Iterator[tuple[Utterance, T]]:
    """``compute(wave_BS, samples_B)`` over all rows, in batches; gives rows in their order.

    ``model`` is what is computed with, ``body`` its network; both are moved to the device, and for
    bf16 their large matrices become bf16. Raises DataError for a row that cannot be read, or is too
    short for a single frame.
    """
    model.to(device).eval()
    if precision == "bf16":
        halve(body)
    for start in range(0, len(rows), PART_ROWS):  # sorted by length, and held, together
        chunk = rows[start : start + PART_ROWS]
        results: dict[int, T] = {}
        for batch in _batches(chunk, body, batch_seconds):
            waves = [wave for _, wave in batch]
            lengths = torch.tensor([len(wave) for wave in waves])
            padded = torch.nn.utils.rnn.pad_sequence(waves, batch_first=True).to(device)
            equal = bool((lengths == lengths[0]).all())
            with torch.inference_mode(), autocast(device, precision):
                values = compute(padded, None if equal else lengths.to(device))
            results.update(zip((index for index, _ in batch), values, strict=True))
        for index, (_, row) in enumerate(chunk):
            yield row, results.pop(index)


def halve(body: Wav2Vec2) -> None:
    """Round the large matrices of a network to bf16, once.

    They would be rounded anew for every batch; norms, the first convolution, which has its norm
    inside, and the positional convolution stay float32.
    """
    first = body.feature_encoder.layers[0]
    for module in body.modules():
        if isinstance(module, nn.Linear | nn.Conv1d) and module is not getattr(first, "conv", None):
            module.bfloat16()


def _batches(
    chunk: Sequence[Job], body: Wav2Vec2, batch_seconds: float
) -> Iterator[list[tuple[int, Tensor]]]:
    """Rows of a chunk by length, as batches of (index in the chunk, samples)."""
    may_pad = body.architecture.extractor_norm == "layer"
    batch: list[tuple[int, Tensor]] = []
    for index in sorted(range(len(chunk)), key=lambda i: chunk[i][1].samples):
        source, row = chunk[index]
        wave = torch.from_numpy(source.audio(row))
        if not int(body.feature_encoder.frames(torch.tensor(len(wave)))):
            raise DataError(
                f"{len(wave)} samples are too short for one frame",
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
    rows: Sequence[Job],
    model: CtcModel,
    *,
    device: torch.device,
    batch_seconds: float = 60.0,
    precision: Precision = "float32",
) -> Iterator[tuple[Utterance, np.ndarray]]:
    """``[T, V]`` float32 natural logs of every row."""

    def compute(wave_BS: Tensor, samples_B: Tensor | None) -> list[np.ndarray]:
        logits, frames_B = model(wave_BS, samples_B)
        logp = logits.float().log_softmax(-1).cpu().numpy()
        return _cut(list(logp), frames_B)

    yield from over(rows, model, model.wav2vec2, compute, device, batch_seconds, precision)


def layers(
    rows: Sequence[Job],
    model: Wav2Vec2,
    names: Sequence[str],
    *,
    device: torch.device,
    batch_seconds: float = 60.0,
    precision: Precision = "float32",
) -> Iterator[tuple[Utterance, dict[str, np.ndarray]]]:
    """The named layers of every row, each ``[T, width]`` float32.

    Names: ``conv`` (latents), ``0`` (input of the Transformer), ``1``… (output of a
    block, without the final LayerNorm of pre-LN models), ``final`` (the context network's output).
    """

    def compute(wave_BS: Tensor, samples_B: Tensor | None) -> list[dict[str, np.ndarray]]:
        context = model(wave_BS, samples_B, layers=names)
        values = {**context.layers, "final": context.x_BTD}
        arrays = {
            name: _cut(list(values[name].float().cpu().numpy()), context.frames_B) for name in names
        }
        return [{name: arrays[name][i] for name in names} for i in range(len(wave_BS))]

    yield from over(rows, model, model, compute, device, batch_seconds, precision)


def _cut(arrays: list[np.ndarray], frames_B: Tensor | None) -> list[np.ndarray]:
    if frames_B is None:
        return arrays
    return [array[:frames] for array, frames in zip(arrays, frames_B.tolist(), strict=True)]
