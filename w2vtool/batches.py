"""From plan to tensors: read, crop or pad, mask; with worker processes when asked for.

Goes in: a manifest and a plan. Goes out: ``Batch`` after ``Batch``, in the order of the plan,
byte-identical whatever the number of workers. Masks are made here, on the CPU and from the keys of
the rows, so that the device never has to tell how many frames are masked. Where asked for, other
rows stand in for those whose audio cannot be read.

Shape legend: B batch, S samples, T frames, M masked frames per row, L labels, D width.
"""

from __future__ import annotations

import atexit
import signal
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from w2vtool.architecture import Architecture
from w2vtool.audio import SAMPLE_RATE
from w2vtool.errors import DataError, UserError
from w2vtool.excerpts import Excerpt, Samples, excerpt
from w2vtool.manifest import Manifest
from w2vtool.model.encoder import normalize
from w2vtool.model.masking import CHANNELS, equalise, span_mask
from w2vtool.plan import Bin, Plan, key, mix
from w2vtool.schema import MaskConfig
from w2vtool.tokens import Tokens

CROP = 7  # purpose of the hash that places a crop; masking.py has 1 to 5
BINS_TRIED = 8  # where none of their rows can be read, the disk is gone, not a file


@dataclass(frozen=True)
class Batch:
    """A micro-batch. What a task does not use is None."""

    wave_BS: Tensor
    samples_B: Tensor | None  # None when no row is padded
    key_B: Tensor
    key: int
    rows: list[int]
    mask_BT: Tensor | None = None
    masked: int = 0  # masked frames per row, where all rows have the same
    channel_mask_BD: Tensor | None = None
    target_BL: Tensor | None = None
    labels_B: Tensor | None = None
    lost: tuple[tuple[int, str], ...] = ()  # rows that others stand in for, and why

    @property
    def seconds(self) -> float:
        """Seconds of audio, without padding."""
        samples = self.wave_BS.numel() if self.samples_B is None else int(self.samples_B.sum())
        return samples / SAMPLE_RATE

    def to(self, device: torch.device) -> Batch:
        """The batch on ``device``; copies from pinned memory do not block."""
        moved: dict[str, Any] = {
            name: value.to(device, non_blocking=True)
            for name, value in vars(self).items()
            if isinstance(value, Tensor)
        }
        return replace(self, **moved)

    def pin_memory(self) -> Batch:
        """The batch in pinned memory (called by the loader when there is a CUDA device)."""
        tensors = {k: v for k, v in vars(self).items() if isinstance(v, Tensor)}
        pinned: dict[str, Any] = {k: v.pin_memory() for k, v in tensors.items()}
        return replace(self, **pinned)


Read = Callable[[int], Samples]  # row of the manifest → samples
Collate = Callable[[Manifest, Read, Bin], Batch]


def frames_of(samples: int | Tensor, architecture: Architecture) -> Tensor:
    """Frames that the feature encoder makes of ``samples``."""
    frames = torch.as_tensor(samples)
    for _, kernel, stride in architecture.conv_layers:
        frames = (torch.div(frames - kernel, stride, rounding_mode="floor") + 1).clamp(min=0)
    return frames


def pretrain_batch(
    manifest: Manifest,
    read: Read,
    part: Bin,
    *,
    architecture: Architecture,
    mask: MaskConfig,
    max_seconds: float,
) -> Batch:
    """Crops of one length (the bucket's shortest, at most ``max_seconds``), masked; no padding.

    Raises DataError for a row with fewer than two masked frames: it has no negatives.
    """
    waves: list[Any] = [read(row) for row in part.rows]
    if architecture.normalize:
        waves = [_prepare(wave[:], architecture) for wave in waves]
    limit = min(max_seconds, part.shortest)  # a row may be shorter than its manifest says
    length = min(round(limit * SAMPLE_RATE), *(len(wave) for wave in waves))
    crops = []
    for wave, row_key in zip(waves, part.keys, strict=True):
        start = key(int(row_key), CROP) % (len(wave) - length + 1)
        crops.append(torch.as_tensor(wave[start : start + length]))
    key_B = torch.from_numpy(part.keys)
    frames = int(frames_of(length, architecture))
    frames_B = torch.full((len(crops),), frames)
    mask_BT = span_mask(key_B, frames_B, frames, mask.probability, mask.length)
    mask_BT = equalise(mask_BT, key_B)
    masked = int(mask_BT[0].sum())
    if masked < 2:
        shortest = manifest.rows[part.rows[min(range(len(waves)), key=lambda i: len(waves[i]))]]
        raise DataError(
            f"{length / SAMPLE_RATE:.3f} s make {frames} frames, too few to guess masked ones",
            where=shortest.id,
            hint="raise min_seconds",
        )
    return Batch(
        torch.stack(crops),
        None,
        key_B,
        part.key,
        part.rows.tolist(),
        mask_BT=mask_BT,
        masked=masked,
        channel_mask_BD=_channel_mask(key_B, architecture, mask),
    )


def ctc_batch(
    manifest: Manifest,
    read: Read,
    part: Bin,
    *,
    architecture: Architecture,
    tokens: Tokens,
    mask: MaskConfig | None,
    unknown: bool = False,
) -> Batch:
    """Whole utterances, zero-padded to the bucket's longest, with their labels.

    Masked where ``mask`` is given; with ``unknown``, letters that are no tokens become ``<unk>``.
    """
    rows = [manifest.rows[row] for row in part.rows]
    waves = [_prepare(read(row)[:], architecture) for row in part.rows]
    samples_B = torch.tensor([len(wave) for wave in waves])
    longest = max(round(part.longest * SAMPLE_RATE), int(samples_B.max()))
    wave_BS = torch.zeros(len(waves), longest)
    for space_S, wave in zip(wave_BS, waves, strict=True):
        space_S[: len(wave)] = wave
    encoded = (tokens.encode(row.text or "", unknown=unknown) for row in rows)
    labels = [torch.tensor(ids, dtype=torch.long) for ids in encoded]
    key_B = torch.from_numpy(part.keys)
    padded = bool((samples_B != wave_BS.shape[1]).any())
    masks: dict[str, Any] = {}
    if mask is not None:
        frames = int(frames_of(wave_BS.shape[1], architecture))
        if mask.probability:
            masks["mask_BT"] = span_mask(
                key_B, frames_of(samples_B, architecture), frames, mask.probability, mask.length
            )
        masks["channel_mask_BD"] = _channel_mask(key_B, architecture, mask)
    return Batch(
        wave_BS,
        samples_B if padded else None,
        key_B,
        part.key,
        part.rows.tolist(),
        target_BL=torch.nn.utils.rnn.pad_sequence(labels, batch_first=True),
        labels_B=torch.tensor([len(label) for label in labels]),
        **masks,
    )


def _prepare(wave: np.ndarray, architecture: Architecture) -> Tensor:
    """Samples as a tensor, normalised over the whole utterance where the model wants it."""
    tensor = torch.from_numpy(wave)
    return normalize(tensor) if architecture.normalize else tensor


def _channel_mask(key_B: Tensor, architecture: Architecture, mask: MaskConfig) -> Tensor | None:
    if not mask.channel_probability:
        return None
    width = architecture.width
    return span_mask(
        key_B,
        torch.full((len(key_B),), width),
        width,
        mask.channel_probability,
        min(mask.channel_length, width // 2),
        min_spans=0,
        purpose=CHANNELS,
    )


class _Bins(Dataset[Batch | UserError]):
    """Bins by number, as the loader wants them, and decoded audio while there is room for it."""

    def __init__(
        self, manifest: Manifest, plan: Plan, collate: Collate, room: int, stand_in: bool
    ) -> None:
        self.manifest, self.plan, self.collate = manifest, plan, collate
        self.room = room  # bytes
        self.stand_in = stand_in
        self.heard: dict[int, np.ndarray] = {}

    def __getitem__(self, number: int) -> Batch | UserError:
        """The batch, or what is wrong with it.

        Why an error is returned: one that is raised in a worker loses its fields, and its message
        becomes the worker's traceback.
        """
        try:
            if not self.stand_in:
                return self.collate(self.manifest, self.read, self.plan.bin(number))
            damaged: dict[int, DataError] = {}
            while (batch := self._batch(number, damaged)) is None:
                pass
            return batch
        except UserError as error:
            return error

    def _batch(self, number: int, damaged: dict[int, DataError]) -> Batch | None:
        """The batch of a bin; None, and one more row in ``damaged``, where an excerpt is no good.

        Other rows are decoded before the batch is made; of these, only a part, while it is.
        """
        part, waves, lost = self._readable(number, damaged)
        try:
            return replace(self.collate(self.manifest, waves.__getitem__, part), lost=lost)
        except DataError as error:
            for row, wave in waves.items():
                if isinstance(wave, Excerpt) and wave.error is error:
                    damaged[row] = error
                    return None
            raise

    def _readable(
        self, number: int, damaged: Mapping[int, DataError]
    ) -> tuple[Bin, dict[int, Samples], tuple[tuple[int, str], ...]]:
        """A bin without rows that cannot be read, its audio, and the rows that had to go.

        The next row of the bin that can be read stands in for one that cannot, under the key of
        that one: cropped and masked elsewhere than where it stands for itself. Where none can, the
        next bin does, under other keys. So what is learned from depends on the files alone.
        """
        own, lost = self.plan.bin(number), dict[int, DataError]()
        for other in range(number, number + BINS_TRIED):
            part, waves = self.plan.bin(other), dict[int, Samples]()
            for row in part.rows.tolist():
                try:
                    if row in damaged:
                        raise damaged[row]
                    waves[row] = self.read(row)
                except DataError as error:
                    lost[row] = error
            if waves:
                break
        else:
            raise next(iter(lost.values()))
        if other != number:
            keys = (mix(part.keys.astype(np.uint64) ^ np.uint64(own.key)) >> np.uint64(1)).astype(
                np.int64
            )
            part = replace(part, number=number, keys=keys, key=own.key)
        rows = part.rows.tolist()
        for place, row in enumerate(part.rows.tolist()):
            if row not in waves:
                following = rows[place + 1 :] + rows[:place]
                rows[place] = next(found for found in following if found in waves)
        reasons = tuple((row, error.what) for row, error in lost.items())
        return replace(part, rows=np.array(rows, np.int64)), waves, reasons

    def read(self, row: int) -> Samples:
        """Samples of a row; small corpora are decoded once.

        Where at least half of a row is cropped away, only the crop is decoded, and not kept.
        """
        found = self.manifest.rows[row]
        if row not in self.heard and found.duration > 2 * self.plan.max_seconds:
            part = excerpt(self.manifest, found, partial(self.decode, row))
            if part is not None:
                return part
        return self.decode(row)

    def decode(self, row: int) -> np.ndarray:
        """All samples of a row, kept while there is room for them."""
        if row in self.heard:
            return self.heard[row]
        wave = self.manifest.audio(self.manifest.rows[row])
        if wave.nbytes <= self.room:
            self.room -= wave.nbytes
            self.heard[row] = wave
        return wave


def _quiet_worker(_: int) -> None:
    """Workers outlive signals, so that the loop can finish its step and save; one thread each."""
    for name in ("SIGTERM", "SIGINT", "SIGUSR1"):
        signal.signal(getattr(signal, name), signal.SIG_IGN)
    torch.set_num_threads(1)


def load(
    manifest: Manifest,
    plan: Plan,
    collate: Collate,
    numbers: Iterable[int],
    *,
    workers: int = 0,
    pin: bool = False,
    cache_megabytes: int = 0,
    stand_in: bool = False,
) -> Iterator[Batch]:
    """Batches of the bins with these numbers, in this order. Raises what the collation raises.

    With ``stand_in``, other rows take the places of those that cannot be read; DataError when the
    rows of several bins in a row cannot.
    """
    loader = DataLoader(
        _Bins(manifest, plan, collate, cache_megabytes << 20, stand_in),
        batch_size=None,
        sampler=numbers,
        num_workers=workers,
        pin_memory=pin,
        worker_init_fn=_quiet_worker if workers else None,
        prefetch_factor=4 if workers else None,
        # its own generator: starting a loader must not move the global one
        generator=torch.Generator(),
    )
    batches: Any = iter(loader)
    # Workers ignore SIGTERM, which is how Python ends them at exit before it waits for them: where
    # an error keeps this generator alive until then, the program would never end.
    stop = getattr(batches, "_shutdown_workers", lambda: None)  # none where there are no workers
    atexit.register(stop)
    try:
        for batch in batches:
            if isinstance(batch, UserError):
                raise batch
            yield batch
    finally:
        atexit.unregister(stop)
        stop()
