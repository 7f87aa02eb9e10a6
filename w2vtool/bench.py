"""How fast this machine trains, fine-tunes, extracts and reads: the toolkit's own code, timed.

Goes in: the configuration of a run, and how many updates to time. Goes out: a dictionary that fits
in JSON: audio seconds a second, FLOPs and their utilisation, the shares of padding and of waiting
for data, peak memory, compilations. The audio is noise made in memory; only ``data`` reads files,
which it writes first. What is timed is ``Training.update`` on batches of ``feed.read``, and
``emissions.layers``: what makes these faster shows here.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch

from w2vtool import emissions, feed, flops, manifest, training
from w2vtool.architecture import Dropouts, ModelConfig
from w2vtool.audio import SAMPLE_RATE
from w2vtool.batches import Batch, Collate, ctc_batch, pretrain_batch
from w2vtool.bench_data import against_soundfile
from w2vtool.bench_machine import PeakMemory, compilations, device_name, synchronise
from w2vtool.device import add_up, inference_precision
from w2vtool.errors import Stopped
from w2vtool.manifest import Manifest, Utterance
from w2vtool.metrics import Recorder
from w2vtool.objectives import Contrastive, Ctc
from w2vtool.schema import LoopConfig, MaskConfig, ObjectiveConfig, OptimConfig
from w2vtool.tokens import Tokens
from w2vtool.trainer import Objective, Training
from w2vtool.training import Place

Lengths = Literal["equal", "mixed"]
COMPARED_BINS = 40  # of the loader, beside a plain loop
MIXED_ROWS = 28_000  # as many as LibriSpeech's train-clean-100: enough for 100 buckets
LETTERS_PER_SECOND = 14  # of read English
_PANGRAM = "THE QUICK BROWN FOX JUMPS OVER THE LAZY DOG "


@dataclass(frozen=True)
class Bench:
    """Where something is timed, after how many updates, on utterances of which lengths."""

    place: Place
    recorder: Recorder
    warmup: int
    lengths: Lengths = "equal"


# -- audio that costs nothing -----------------------------------------------------------------


@dataclass(frozen=True)
class Noise(Manifest):
    """Rows without files: the audio of each is a stretch of one long noise."""

    wave: np.ndarray

    def audio(self, row: Utterance) -> np.ndarray:
        """Float32 samples ``[S]``, where they lie in memory."""
        start = int(row.id) * 7919 % (len(self.wave) - row.samples + 1)
        return self.wave[start : start + row.samples]


def noise(seconds: Sequence[float]) -> Noise:
    """Utterances of these lengths, each with as much text as is spoken in that time."""
    longest = max(seconds)
    samples = round((longest + 1) * SAMPLE_RATE)
    wave = 0.1 * np.random.default_rng(0).standard_normal(samples, dtype=np.float32)
    text = _PANGRAM * (1 + round(longest * LETTERS_PER_SECOND) // len(_PANGRAM))
    rows = [
        Utterance(str(i), "", length, text=text[: max(1, int(length * LETTERS_PER_SECOND))].strip())
        for i, length in enumerate(seconds)
    ]
    return Noise(Path("noise"), rows, "", wave)


def durations(lengths: Lengths, longest: float, bin_seconds: float) -> list[float]:
    """Lengths of utterances, in seconds.

    "equal": all are ``longest``, as many as make whole bins. "mixed": about as in LibriSpeech's
    training splits, most between 12 and 16.7 s and the rest shorter, but ``longest`` at most.
    """
    if lengths == "equal":
        return [longest] * (4 * max(1, int(bin_seconds / longest)))
    u, v = np.random.default_rng(1).random((2, MIXED_ROWS))
    seconds = np.minimum(np.where(u < 0.28, 2 + 10 * v, 12 + 4.7 * v), longest)
    return [round(value * SAMPLE_RATE) / SAMPLE_RATE for value in seconds.tolist()]


# -- what is counted --------------------------------------------------------------------------


class Meter:
    """Batches as they come, what they hold, and the time that was spent waiting for them.

    The time is an upper bound of what waiting costs: an accelerator may be busy meanwhile.
    """

    def __init__(self, batches: Iterator[Batch], work: Callable[[Batch], int]) -> None:
        self.batches, self.work = batches, work
        self.reset()

    def reset(self) -> None:
        """Count from here on."""
        self.audio = self.held = self.waited = 0.0  # seconds; held is with padding
        self.flops = 0

    def __iter__(self) -> Meter:
        return self

    def __next__(self) -> Batch:
        began = time.perf_counter()
        batch = next(self.batches)
        self.waited += time.perf_counter() - began
        self.audio += batch.seconds
        self.held += batch.wave_BS.numel() / SAMPLE_RATE
        self.flops += self.work(batch)
        return batch


class Sums(NamedTuple):
    """What all processes did together, and the mean of their seconds."""

    seconds: float
    audio: float
    held: float
    waited: float | None
    flops: float


def _report(bench: Bench, sums: Sums, precision: str, memory: PeakMemory) -> dict[str, Any]:
    """The figures that all kinds of bench have. ``mfu`` is null where no peak is known."""
    place = bench.place
    name, speed = device_name(place.device), sums.audio / sums.seconds
    share = flops.utilisation(sums.flops / sums.seconds / place.world, name)
    return {
        "audio_s_per_s": speed,
        "mfu": share if sums.flops else None,
        "flops_per_audio_s": sums.flops / sums.audio if sums.flops else None,
        "padding": 1 - sums.audio / sums.held,
        "data_wait": None if sums.waited is None else sums.waited / sums.seconds,
        "peak_memory_bytes": memory.bytes,
        "audio_s": sums.audio,
        "seconds": sums.seconds,
        "precision": precision,
        "device": name,
        "processes": place.world,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }


# -- training ---------------------------------------------------------------------------------


def pretrain(
    bench: Bench,
    *,
    model: ModelConfig,
    dropouts: Dropouts,
    mask: MaskConfig,
    objective: ObjectiveConfig,
    optim: OptimConfig,
    loop: LoopConfig,
) -> dict[str, Any]:
    """Time ``loop.updates`` updates of pre-training."""
    memory, start = PeakMemory(bench.place.device), training.initial(model, "pretrain")
    sizes = start.spec.architecture
    collate = partial(pretrain_batch, architecture=sizes, mask=mask, max_seconds=loop.max_seconds)
    job = Job(
        start,
        training.build(start, dropouts, loop.seed),
        Contrastive(objective, dropouts.layer_drop),
        _split(bench, loop, collate, crop=True),
        partial(flops.of_batch, sizes, frozen=not objective.feature_gradient),
    )
    return _train(bench, job, optim, loop, memory)


def finetune(
    bench: Bench,
    *,
    model: ModelConfig,
    dropouts: Dropouts,
    mask: MaskConfig,
    feature_gradient: float,
    optim: OptimConfig,
    loop: LoopConfig,
) -> dict[str, Any]:
    """Time ``loop.updates`` updates of CTC training on letters."""
    memory, tokens = PeakMemory(bench.place.device), Tokens()
    start = training.initial(model, "ctc", tokens=tokens, fresh_head=True)
    sizes = start.spec.architecture
    collate = partial(ctc_batch, architecture=sizes, tokens=tokens, mask=mask)
    split = _split(bench, loop, collate, crop=False)
    job = Job(
        start,
        training.build(start, dropouts, loop.seed),
        Ctc(tokens, split.manifest, "upper", 0, feature_gradient, dropouts.layer_drop),
        split,
        partial(flops.of_batch, sizes, vocabulary=len(tokens), frozen=not feature_gradient),
    )
    return _train(bench, job, optim, loop, memory)


class Job(NamedTuple):
    """What is trained on what, and what a batch of it costs."""

    start: training.Start
    model: torch.nn.Module
    objective: Objective
    split: feed.Split
    work: Callable[[Batch], int]


def _split(bench: Bench, loop: LoopConfig, collate: Collate, *, crop: bool) -> feed.Split:
    found = noise(durations(bench.lengths, loop.max_seconds, loop.bin_seconds))
    return training.split(found, loop, collate, crop=crop)


def _train(
    bench: Bench, job: Job, optim: OptimConfig, loop: LoopConfig, memory: PeakMemory
) -> dict[str, Any]:
    graphs, updates = compilations(), loop.updates
    loop = training.portions(loop, job.split.plan, bench.place.world)
    loop = loop.model_copy(update={"updates": bench.warmup + updates})
    with tempfile.TemporaryDirectory() as folder:  # nothing is saved
        run = Training(
            model=job.model,
            spec=job.start.spec,
            objective=job.objective,
            train=job.split,
            valid=None,
            loop=loop,
            optim=optim,
            folder=Path(folder) / "checkpoints",
            device=bench.place.device,
            rank=bench.place.rank,
            world=bench.place.world,
        )
        sums = drive(run, bench, job.work)
    report = _report(bench, sums, loop.precision, memory)
    return {**report, "compilations": compilations() - graphs, "updates": updates}


def drive(run: Training, bench: Bench, work: Callable[[Batch], int]) -> Sums:
    """All updates of ``run``; the warm-up counts for nothing. Raises Stopped after a signal."""
    loop, began = run.loop, time.perf_counter()
    numbers = feed.BinNumbers(0, loop.updates, loop.bins, run.rank, run.world, run.train.plan)
    run.model.train()
    with (
        feed.loader_errors(),
        bench.recorder.progress(loop.updates, "bench", "updates") as bar,
    ):
        meter = Meter(feed.read(run.train, numbers, loop, pin=run.device.type == "cuda"), work)
        for update in range(loop.updates):
            if update == bench.warmup:
                synchronise(run.device)
                meter.reset()
                began = time.perf_counter()
            run.update(meter, bench.recorder.stop)
            if run.signal is not None:
                raise Stopped(run.signal)
            bar.update(update + 1)
        synchronise(run.device)
        seconds = time.perf_counter() - began
    mine = [seconds, meter.audio, meter.held, meter.waited, meter.flops]
    all_of_them = add_up(torch.tensor(mine, dtype=torch.float64, device=run.device)).tolist()
    seconds, audio, held, waited, count = all_of_them
    return Sums(seconds / run.world, audio, held, waited / run.world, count)


# -- extraction and reading -------------------------------------------------------------------


def extract(
    bench: Bench,
    *,
    model: ModelConfig,
    precision: Literal["auto", "float32", "bf16"],
    batch_seconds: float,
    utterance_seconds: float,
    batches: int,
) -> dict[str, Any]:
    """Time about ``batches`` batches of feature extraction, of the network's output.

    The time for reading is not told apart.
    """
    device, graphs = bench.place.device, compilations()
    arithmetic = inference_precision(precision, device)
    memory, start = PeakMemory(device), training.initial(model, "backbone")
    body: Any = training.build(start, Dropouts(), 0).wav2vec2
    held: list[int] = []
    body.register_forward_pre_hook(lambda _, inputs: held.append(inputs[0].numel()))
    lengths = durations(bench.lengths, utterance_seconds, batch_seconds)
    per_batch = max(1, int(batch_seconds / utterance_seconds))
    warm = bench.warmup * per_batch
    source = noise([lengths[i % len(lengths)] for i in range(warm + batches * per_batch)])
    jobs: list[emissions.Job] = [(source, row) for row in source.rows]
    with bench.recorder.progress(len(jobs), "bench", "utterances") as bar:
        for first, last in ((0, warm), (warm, len(jobs))):
            synchronise(device)
            held.clear()
            began = time.perf_counter()
            stream = emissions.layers(
                jobs[first:last],
                body,
                ["final"],
                device=device,
                batch_seconds=batch_seconds,
                precision=arithmetic,
            )
            for number, _ in enumerate(stream, start=first + 1):
                bar.update(number)
                if bench.recorder.stop.signal is not None:
                    raise Stopped(bench.recorder.stop.signal)
            synchronise(device)
        seconds = time.perf_counter() - began
    samples = [row.samples for _, row in jobs[warm:]]
    work = sum(sum(flops.forward(start.spec.architecture, n).values()) for n in samples)
    sums = Sums(seconds, sum(samples) / SAMPLE_RATE, sum(held) / SAMPLE_RATE, None, work)
    report = _report(bench, sums, arithmetic, memory)
    return {**report, "compilations": compilations() - graphs, "updates": len(held)}


def data(
    bench: Bench, *, model: ModelConfig, mask: MaskConfig, loop: LoopConfig, files: int
) -> dict[str, Any]:
    """Time reading: FLAC files to masked batches, ``loop.updates × loop.bins`` of them, no model.

    The files are written to a temporary folder first, and read from the system's cache. ``ratio``
    and what is beside it are those of ``bench_data.against_soundfile``.
    """
    memory, sizes = PeakMemory(bench.place.device), model.sizes()
    collate = partial(pretrain_batch, architecture=sizes, mask=mask, max_seconds=loop.max_seconds)
    with (
        tempfile.TemporaryDirectory() as folder,
        feed.loader_errors(),
        bench.recorder.progress(loop.updates, "bench", "updates") as bar,
    ):
        found = write_flac(Path(folder), files, loop.max_seconds)
        split = training.split(found, loop, collate, crop=True)
        loop = training.portions(loop, split.plan, 1)
        numbers = range((bench.warmup + loop.updates) * loop.bins)
        pin = bench.place.device.type == "cuda"
        meter = Meter(feed.read(split, numbers, loop, cache_megabytes=0, pin=pin), lambda _: 0)
        began = time.perf_counter()
        for number, _ in enumerate(meter):
            if number < bench.warmup * loop.bins:
                meter.reset()
                began = time.perf_counter()
            bar.update(number // loop.bins)
            if bench.recorder.stop.signal is not None:
                raise Stopped(bench.recorder.stop.signal)
        seconds = time.perf_counter() - began
        beside = against_soundfile(split, min(len(numbers), COMPARED_BINS))
    sums = Sums(seconds, meter.audio, meter.held, meter.waited, 0)
    report = _report(bench, sums, "float32", memory)
    return {**report, "compilations": 0, "updates": loop.updates, "workers": loop.workers, **beside}


def write_flac(folder: Path, files: int, seconds: float) -> Manifest:
    """Files of tones and some noise, which FLAC makes about as small as it makes speech."""
    import soundfile  # the one place of the toolkit that writes audio

    time_S = np.arange(round(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    rows = []
    for i in range(files):
        generator = np.random.default_rng(i)
        tones = np.sin(2 * np.pi * generator.uniform(80, 3000, (4, 1)) * time_S).sum(0)
        wave = 0.1 * tones + 0.01 * generator.standard_normal(len(time_S))
        soundfile.write(folder / f"{i}.flac", wave, SAMPLE_RATE, subtype="PCM_16")
        rows.append(Utterance(str(i), f"{i}.flac", len(time_S) / SAMPLE_RATE))
    return Manifest(folder / "files.jsonl", rows, manifest.sha256(rows))
