"""A model over utterances: log-probabilities for decoding, named layers for extraction.

Goes in: a model and rows of manifests. Goes out: one array per row, in the order of the rows,
a bounded number of them in memory at a time.

Why equal-length batches: padding alone moves the output of a group-norm model by a quarter (its
statistics run over time), so rows share a batch only if they are equally long. Models
with layer norms may be padded.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from copy import copy
from dataclasses import asdict, replace
from itertools import accumulate
from pathlib import Path
from typing import Any, Literal, TypeVar, overload

import numpy as np
import torch
from torch import Tensor, nn

from w2vtool import corpora, manifest
from w2vtool.audio import EXTENSIONS, SAMPLE_RATE, AudioError
from w2vtool.device import autocast
from w2vtool.errors import ConfigError, DataError
from w2vtool.manifest import Built, Manifest, Rejected, Utterance
from w2vtool.model.encoder import Wav2Vec2, normalize
from w2vtool.model.heads import CtcModel
from w2vtool.parts import PART_ROWS, Line
from w2vtool.rates import refuse_others
from w2vtool.rejects import Reject
from w2vtool.schema import DataConfig, TextConfig
from w2vtool.splits import open_split, remarks, resampled
from w2vtool.text import Rules

Job = tuple[Manifest, Utterance]
Precision = Literal["float32", "bf16"]
T = TypeVar("T")


class Jobs(Sequence[Job]):
    """Rows of manifests, one after the other, each read when it is asked for; so are slices.

    With each row comes its manifest without the others, to be sent to other processes.
    ``rejected`` are audio files that were named and are no rows, for ``rejects.conclude``.
    """

    def __init__(self, manifests: Sequence[Manifest], rejected: Sequence[Line] = ()) -> None:
        self.manifests, self.rejected = manifests, rejected
        self.alone = [Manifest(m.path.absolute(), [], m.sha256) for m in manifests]
        self.ends = list(accumulate(len(m.rows) for m in manifests))
        self.numbers = range(self.ends[-1] if manifests else 0)

    @property
    def seconds(self) -> float:
        """Audio in all of the manifests."""
        return float(sum(m.seconds for m in self.manifests))

    def __len__(self) -> int:
        return len(self.numbers)

    @overload
    def __getitem__(self, index: int) -> Job: ...
    @overload
    def __getitem__(self, index: slice) -> Jobs: ...
    def __getitem__(self, index: int | slice) -> Job | Jobs:
        """One row with its manifest, or a sequence of some."""
        found = self.numbers[index]
        if isinstance(found, range):
            some = copy(self)
            some.numbers = found
            return some
        part = bisect_right(self.ends, found)
        return self.alone[part], self.manifests[part].rows[found - self.ends[part]]

    def __iter__(self) -> Iterator[Job]:
        """Rows as they stand in their files, which is quicker than one by one."""
        if self.numbers.step != 1:
            yield from map(self.__getitem__, range(len(self)))
            return
        first = 0
        for alone, opened, end in zip(self.alone, self.manifests, self.ends, strict=True):
            mine = range(max(first, self.numbers.start), min(end, self.numbers.stop))
            for start in range(mine.start, mine.stop, PART_ROWS):
                stop = min(start + PART_ROWS, mine.stop)
                yield from ((alone, row) for row in opened.rows[start - first : stop - first])
            first = end


def open_inputs(
    paths: Sequence[Path],
    *,
    jobs: int = 0,
    strict_rate: bool = False,
    strict: bool = True,
    say: Callable[[str], None] = lambda text: None,
) -> Jobs:
    """Rows of audio files, folders, transcripts (``.tsv``) and manifests, in the order given.

    What is said once goes through ``say``: files of a folder that cannot be used and are left out,
    other sample rates, stereo. Raises DataError for every input without a usable file, and with
    ``strict_rate`` for audio that is not at 16 kHz. Without ``strict``, audio files that are there
    and cannot be decoded are rejected, if anything else is left.
    """
    inputs = list(dict.fromkeys(paths))
    opened = {path: manifest.read(path) for path in inputs if path.suffix == ".jsonl"}
    listed = Built()
    for found in opened.values():
        listed.resampled.update(resampled(found, ask=strict_rate))
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
    useless = [path for path in scans if not opened[path].rows]
    bad = [path for path in useless if path.suffix.lower() in EXTENSIONS and path.is_file()]
    if strict or len(bad) < len(useless) or len(bad) == len(inputs):
        _refuse([left_out[path] for path in useless])
    for item in (item for found in left_out.values() for item in found):
        say(f"left out: {item.path}: {item.detail} ({item.reason})")
    if strict_rate:
        refuse_others(listed.resampled + built.resampled, "the inputs")
    listed.resampled.update(built.resampled)
    for text in remarks(replace(built, resampled=listed.resampled)):
        say(text)
    lost = [{"id": scans[path].candidates[0].id, **left_out[path][0]._asdict()} for path in bad]
    return Jobs([opened[path] for path in inputs], lost)


def open_rows(
    inputs: Sequence[Path],
    split: str,
    data: DataConfig,
    text: TextConfig,
    *,
    jobs: int = 1,
    strict: bool = True,
    say: Callable[[str], None] = lambda text: None,
) -> Jobs:
    """The rows of the inputs; without any, of the recipe's split. Raises ConfigError for neither.

    ``strict``, and DataError, as ``open_inputs``.
    """
    if inputs:
        options = {"strict_rate": data.strict_rate, "strict": strict}
        return open_inputs(inputs, jobs=max(2, jobs), **options, say=say)
    if not getattr(data, split):
        raise ConfigError(
            "nothing to transcribe", hint="name audio files, folders or manifests (.jsonl)"
        )
    return Jobs([open_split(data, split, rules=Rules.of(text), say=say)])


def identify(job: Job) -> dict[str, Any]:
    """What a row is, for ``parts.cut``: all that the manifest says, and the size of the file."""
    source, row = job
    path = source.audio_path(row)
    try:
        size = path.stat().st_size
    except OSError:  # reading it will say so
        size = None
    return {**asdict(row), "audio": str(path.absolute()), "bytes": size}


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
    reject: Reject | None = None,
) -> Iterator[tuple[Utterance, T]]:
    """``compute(wave_BS, samples_B)`` over all rows, in batches; gives rows in their order.

    ``model`` is what is computed with, ``body`` its network; both are moved to the device, and for
    bf16 their large matrices become bf16. A row that cannot be read, or is too short for a single
    frame, is left out and given to ``reject``; without it, AudioError is raised.
    """
    model.to(device).eval()
    if precision == "bf16":
        halve(body)
    for start in range(0, len(rows), PART_ROWS):  # sorted by length, and held, together
        chunk = list(rows[start : start + PART_ROWS])
        results: dict[int, T] = {}
        for batch in _batches(chunk, body, batch_seconds, start, reject):
            waves = [wave for _, wave in batch]
            lengths = torch.tensor([len(wave) for wave in waves])
            padded = torch.nn.utils.rnn.pad_sequence(waves, batch_first=True).to(device)
            equal = bool((lengths == lengths[0]).all())
            with torch.inference_mode(), autocast(device, precision):
                values = compute(padded, None if equal else lengths.to(device))
            results.update(zip((index for index, _ in batch), values, strict=True))
        for index in sorted(results):
            yield chunk[index][1], results.pop(index)


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
    chunk: Sequence[Job], body: Wav2Vec2, batch_seconds: float, first: int, reject: Reject | None
) -> Iterator[list[tuple[int, Tensor]]]:
    """Rows of a chunk by length, as batches of (index in the chunk, samples)."""
    may_pad = body.architecture.extractor_norm == "layer"
    batch: list[tuple[int, Tensor]] = []
    for index in sorted(range(len(chunk)), key=lambda i: chunk[i][1].samples):
        try:
            wave = _wave(chunk[index], body)
        except AudioError as error:
            if reject is None:
                raise
            reject(first + index, error)
            continue
        wave = normalize(wave) if body.architecture.normalize else wave
        full = (len(batch) + 1) * len(wave) > batch_seconds * SAMPLE_RATE
        unequal = bool(batch) and len(batch[0][1]) != len(wave) and not may_pad
        if batch and (full or unequal):
            yield batch
            batch = []
        batch.append((index, wave))
    if batch:
        yield batch


def _wave(job: Job, body: Wav2Vec2) -> Tensor:
    source, row = job
    wave = torch.from_numpy(source.audio(row))
    if not int(body.feature_encoder.frames(torch.tensor(len(wave)))):
        raise too_short(job, len(wave))
    return wave


def too_short(job: Job, samples: int) -> AudioError:
    """Why a row with so few samples cannot be used."""
    source, row = job
    what, where = f"{samples} samples are too short for one frame", f"{source.path} ({row.id})"
    return AudioError(what, where=where, reason="too-short")


def log_probabilities(
    rows: Sequence[Job],
    model: CtcModel,
    *,
    device: torch.device,
    batch_seconds: float = 60.0,
    precision: Precision = "float32",
    reject: Reject | None = None,
) -> Iterator[tuple[Utterance, np.ndarray]]:
    """``[T, V]`` float32 natural logs of every row; ``reject`` as for ``over``."""

    def compute(wave_BS: Tensor, samples_B: Tensor | None) -> list[np.ndarray]:
        logits, frames_B = model(wave_BS, samples_B)
        logp = logits.float().log_softmax(-1).cpu().numpy()
        return _cut(list(logp), frames_B)

    yield from over(rows, model, model.wav2vec2, compute, device, batch_seconds, precision, reject)


def layers(
    rows: Sequence[Job],
    model: Wav2Vec2,
    names: Sequence[str],
    *,
    device: torch.device,
    batch_seconds: float = 60.0,
    precision: Precision = "float32",
    reject: Reject | None = None,
) -> Iterator[tuple[Utterance, dict[str, np.ndarray]]]:
    """The named layers of every row, each ``[T, width]`` float32; ``reject`` as for ``over``.

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

    yield from over(rows, model, model, compute, device, batch_seconds, precision, reject)


def _cut(arrays: list[np.ndarray], frames_B: Tensor | None) -> list[np.ndarray]:
    if frames_B is None:
        return arrays
    return [array[:frames] for array, frames in zip(arrays, frames_B.tolist(), strict=True)]
