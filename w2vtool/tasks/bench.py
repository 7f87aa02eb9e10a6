"""Measure this machine: pre-training, fine-tuning, feature extraction, reading audio.

Goes in: a network and a loop, or a recipe that has them. Goes out: a table, or with ``--json`` a
dictionary: audio seconds a second, utilisation, padding, waiting for data, memory, compilations.
The audio is made up, the code is that of the tasks. LayerDrop is off unless asked for, because a
block that is left out would count as computed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

from w2vtool.architecture import Dropouts, ModelConfig
from w2vtool.schema import (
    Config,
    LoopConfig,
    MaskConfig,
    ObjectiveConfig,
    OptimConfig,
    knob,
)
from w2vtool.task import Task

if TYPE_CHECKING:
    from w2vtool.run import Run

_WARMUP = knob(5, "Updates before the ones that are timed.", unit="updates", ge=1)
_LENGTHS = "equal: utterances of max_seconds; mixed: about as LibriSpeech's training utterances."
_LOOP = LoopConfig(updates=20, bins=1)


class BenchPretrainConfig(Config):
    """What is pre-trained, and for how long; the defaults are BASE on crops of 15.6 s."""

    model: ModelConfig = knob(ModelConfig(), "The network.")
    dropouts: Dropouts = knob(
        Dropouts(hidden=0.1, attention=0.1, input=0.1, features=0.1), "Regularisation."
    )
    mask: MaskConfig = knob(MaskConfig(), "Which frames are to be guessed.")
    objective: ObjectiveConfig = knob(ObjectiveConfig(), "The loss.")
    optim: OptimConfig = knob(OptimConfig(), "Optimizer and schedule.")
    loop: LoopConfig = knob(_LOOP, "Length, portions and arithmetic.")
    warmup: int = _WARMUP
    lengths: Literal["equal", "mixed"] = knob("equal", _LENGTHS)


class BenchFinetuneConfig(Config):
    """What is fine-tuned, and for how long; the defaults are BASE with a frozen feature encoder."""

    model: ModelConfig = knob(ModelConfig(), "The network.")
    dropouts: Dropouts = knob(Dropouts(activation=0.1), "Regularisation.")
    mask: MaskConfig = knob(
        MaskConfig(probability=0.65, channel_probability=0.5), "Frames and channels hidden."
    )
    feature_gradient: float = knob(
        0.0, "Factor on the gradient that reaches the feature encoder; 0 freezes it.", ge=0
    )
    optim: OptimConfig = knob(OptimConfig(lr=3e-5), "Optimizer and schedule.")
    loop: LoopConfig = knob(
        LoopConfig(updates=20, bins=1, bin_seconds=200.0, max_seconds=17.0),
        "Length, portions and arithmetic.",
    )
    warmup: int = _WARMUP
    lengths: Literal["equal", "mixed"] = knob("mixed", _LENGTHS)


class BenchExtractConfig(Config):
    """What is extracted, and from how much."""

    model: ModelConfig = knob(ModelConfig(), "The network.")
    precision: Literal["auto", "float32", "bf16"] = knob(
        "auto", "Arithmetic; auto is bf16 where the device multiplies in it, as in extract."
    )
    device: str = knob("auto", "auto, cpu or cuda.")
    batch_seconds: float = knob(60.0, "Audio in one batch.", unit="s", gt=0)
    utterance_seconds: float = knob(15.0, "Longest utterance.", unit="s", ge=0.025)
    batches: int = knob(10, "Batches that are timed.", ge=1)
    warmup: int = _WARMUP
    lengths: Literal["equal", "mixed"] = knob("equal", _LENGTHS)


class BenchDataConfig(Config):
    """How much is read, and by how many."""

    model: ModelConfig = knob(ModelConfig(), "The network that the batches are masked for.")
    mask: MaskConfig = knob(MaskConfig(), "Which frames are to be guessed.")
    loop: LoopConfig = knob(_LOOP, "Portions and processes.")
    files: int = knob(64, "FLAC files of max_seconds that are written, and read again.", ge=1)
    warmup: int = _WARMUP


def pretrain(config: BenchPretrainConfig, run: Run) -> dict[str, Any]:
    """Time updates of pre-training."""
    from w2vtool import bench

    return _trained(config, run, bench.pretrain)


def finetune(config: BenchFinetuneConfig, run: Run) -> dict[str, Any]:
    """Time updates of CTC training."""
    from w2vtool import bench

    return _trained(config, run, bench.finetune)


def _trained(
    config: BenchPretrainConfig | BenchFinetuneConfig,
    run: Run,
    measure: Callable[..., dict[str, Any]],
) -> dict[str, Any]:
    from w2vtool import training
    from w2vtool.bench import Bench

    parts = {name: getattr(config, name) for name in type(config).model_fields}
    with training.start(config.loop, run) as place:
        where = Bench(place, run, parts.pop("warmup"), parts.pop("lengths"))
        return _shown(measure.__name__, config.model, measure(where, **parts), run)


def extract(config: BenchExtractConfig, run: Run) -> dict[str, Any]:
    """Time feature extraction."""
    from w2vtool import bench
    from w2vtool.device import choose
    from w2vtool.training import Place

    where = bench.Bench(Place(choose(config.device), 0, 1), run, config.warmup, config.lengths)
    found = bench.extract(
        where,
        model=config.model,
        precision=config.precision,
        batch_seconds=config.batch_seconds,
        utterance_seconds=config.utterance_seconds,
        batches=config.batches,
    )
    return _shown("extract", config.model, found, run)


def data(config: BenchDataConfig, run: Run) -> dict[str, Any]:
    """Time the loader alone."""
    from w2vtool import bench
    from w2vtool.device import choose
    from w2vtool.training import Place

    where = bench.Bench(Place(choose(config.loop.device), 0, 1), run, config.warmup)
    found = bench.data(
        where, model=config.model, mask=config.mask, loop=config.loop, files=config.files
    )
    return _shown("data", config.model, found, run)


def _shown(what: str, model: ModelConfig, found: dict[str, Any], run: Run) -> dict[str, Any]:
    """Print the figures, and give them back."""
    cost, waited = found["flops_per_audio_s"], found["data_wait"]
    rows = {
        "audio seconds a second": f"{found['audio_s_per_s']:,.1f}",
        "MFU": f"{found['mfu']:.1%}" if found["mfu"] is not None else "the peak is not known",
        "GFLOP an audio second": f"{cost / 1e9:,.1f}" if cost else "none",
        "padding": f"{found['padding']:.1%}",
        "waiting for data": f"{waited:.1%}" if waited is not None else "not measured",
        "peak memory": f"{found['peak_memory_bytes'] / 2**20:,.0f} MiB",
        "compilations": found["compilations"],
        "timed": f"{found['audio_s']:,.0f} s of audio in {found['seconds']:.1f} s",
        "device": f"{found['device']} × {found['processes']}, {found['threads']} threads",
        "torch": found["torch"],
    }
    if "ratio" in found:
        plain = found["soundfile_s_per_cpu_s"]
        rows["speed of a soundfile loop"] = f"{found['ratio']:.2f} of {plain:,.0f} s a CPU second"
    title = f"bench {what}: {model.architecture}, {found['precision']}"
    run.table(title, ["what", "value"], list(rows.items()))
    return found


_LOOP_FLAGS = {
    "--architecture": "model.architecture",
    "--precision": "loop.precision",
    "--seconds": "loop.bin_seconds",
    "--crop": "loop.max_seconds",
    "--updates": "loop.updates",
    "--warmup": "warmup",
    "--device": "loop.device",
    "--workers": "loop.workers",
}
PRETRAIN = Task(
    BenchPretrainConfig,
    pretrain,
    flags={**_LOOP_FLAGS, "--lengths": "lengths"},
    example="w2vtool bench pretrain --architecture base --seconds 31.25 --updates 5 --json",
)
FINETUNE = Task(
    BenchFinetuneConfig,
    finetune,
    flags={**_LOOP_FLAGS, "--lengths": "lengths"},
    example="w2vtool bench finetune --seconds 40 --updates 5 --json",
)
EXTRACT = Task(
    BenchExtractConfig,
    extract,
    flags={
        "--architecture": "model.architecture",
        "--precision": "precision",
        "--seconds": "batch_seconds",
        "--crop": "utterance_seconds",
        "--updates": "batches",
        "--warmup": "warmup",
        "--device": "device",
        "--lengths": "lengths",
    },
    example="w2vtool bench extract --precision bf16 --json",
)
DATA = Task(
    BenchDataConfig,
    data,
    flags={**_LOOP_FLAGS, "--files": "files"},
    example="w2vtool bench data --workers 2 --json",
)
