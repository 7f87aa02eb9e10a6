"""What the training tasks have in common: set-up, first weights, tokens, and the run itself.

Goes in: config sections. Goes out: a trained model in the run folder, and a summary.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from w2vtool import checkpoint, device, metrics, trainer
from w2vtool.architecture import Dropouts, ModelConfig
from w2vtool.batches import Collate
from w2vtool.errors import CheckpointError, ConfigError
from w2vtool.feed import Split
from w2vtool.manifest import Manifest
from w2vtool.model.heads import CtcModel
from w2vtool.plan import Plan
from w2vtool.run import write_atomic
from w2vtool.schema import DataConfig, LoopConfig, OptimConfig, TextConfig
from w2vtool.splits import open_split
from w2vtool.text import Rules
from w2vtool.tokens import Tokens

# What pre-training heard in the paper (§4.2): updates × hours an update, by width of the network.
PAPER_HOURS = {768: ("BASE", 400_000 * 1.6), 1024: ("LARGE", 250_000 * 2.7)}
# Below this much audio an update, pre-training of BASE was unstable: with 87.5 s it went well only
# at a rate of 7e-6, 70 times below the paper's, while 150 s took what the square root of the size
# allows (Vaessen & van Leeuwen 2024, arXiv 2402.13723, and the table of rates beside their code).
STABLE_SECONDS = 150


class Folder(metrics.Recorder, Protocol):
    """What is needed of ``w2vtool.run.Run``."""

    resume: bool

    @property
    def folder(self) -> Path:
        """Where everything goes."""

    def say(self, text: str) -> None:
        """A line for people."""

    def note(self, **facts: Any) -> None:
        """Facts for run.json."""


@dataclass(frozen=True)
class Place:
    """Where this process computes."""

    device: torch.device
    rank: int
    world: int


@contextmanager
def start(loop: LoopConfig, run: Folder) -> Iterator[Place]:
    """Choose the device, and join the other processes if there are any."""
    chosen = device.choose(loop.device)
    with device.processes(chosen) as (rank, world):
        if loop.bins % world:  # 0 where batch_hours is to say: see portions
            raise ConfigError(
                f"loop.bins = {loop.bins} micro-batches cannot be spread over {world} processes",
                hint=f"use a multiple of {world}",
            )
        run.note(device=str(chosen), processes=world)
        yield Place(chosen, rank, world)


@dataclass(frozen=True)
class Start:
    """What to train, the weights to start from (those that there are), and where they come from."""

    spec: checkpoint.Spec
    weights: dict[str, Tensor]
    history: list[dict[str, Any]]  # of those weights, the oldest first


def initial(
    model: ModelConfig,
    kind: str,
    *,
    tokens: Tokens | None = None,
    rules: Rules | None = None,
    fresh_head: bool = False,
) -> Start:
    """Start from ``model.init``, or from nothing.

    A CTC model starts from the body of a pre-trained one with a fresh head, or from another CTC
    model with its head, unless ``fresh_head``. Raises CheckpointError when the vocabularies differ.
    """
    spelled = asdict(rules or Rules())
    if model.init is None:
        return Start(checkpoint.Spec(kind, model.sizes(), tokens, **spelled), {}, [])
    source = checkpoint.load(model.init)
    spec = checkpoint.Spec(kind, source.spec.architecture, tokens, **spelled)
    same = source.spec.kind == kind and not fresh_head
    if same and kind == "ctc" and source.spec.tokens != tokens:
        old = source.spec.tokens.symbols if source.spec.tokens else ()
        new = tokens.symbols if tokens else ()
        raise CheckpointError(
            "the checkpoint was trained with another vocabulary\n"
            f"  checkpoint: {' '.join(old)}\n  this run:   {' '.join(new)}",
            where=str(source.path),
            hint="text.tokens=checkpoint keeps its own; fresh_head=true learns a new head",
        )
    body = {k: v for k, v in source.weights.items() if k.startswith("wav2vec2.")}
    return Start(spec, source.weights if same else body, lineage(source))


def lineage(source: checkpoint.Checkpoint) -> list[dict[str, Any]]:
    """How the weights of a checkpoint came about: its own history, then its own training."""
    state = source.state
    history = list(state.get("history", []))
    if "seconds" in state:  # trained here, not only imported
        entry = {
            "task": source.spec.kind,
            "updates": state["step"],
            "audio_hours": round(state["seconds"] / 3600, 3),
            "manifest": state.get("manifest"),
            "weights": checkpoint.fingerprint(source.path),
        }
        history.append(entry)
    return history


def build(
    start: Start,
    dropouts: Dropouts,
    seed: int,
    *,
    blank_bias: float = 0.0,
) -> nn.Module:
    """The model: fresh weights drawn from ``seed``, replaced by those that are given.

    ``blank_bias`` is the bias that the blank of a fresh CTC head starts with.
    """
    torch.manual_seed(seed)
    model = start.spec.build(dropouts)
    if isinstance(model, CtcModel) and start.spec.tokens is not None:
        nn.init.constant_(model.head.bias[start.spec.tokens.blank], blank_bias)
    checkpoint.load_weights(model, {**model.state_dict(), **start.weights}, "model.init")
    return model


def manifests(data: DataConfig, place: Place, *, rules: Rules, run: Folder) -> dict[str, Manifest]:
    """The splits to train on; ``train`` must be given. One process builds what has to be built."""
    return {
        name: open_split(data, name, rules=rules, say=run.say, wait=place.rank > 0)
        for name in ("train", "valid")
        if getattr(data, name) or name == "train"
    }


def tokens(text: TextConfig, manifest: Manifest, init: Path | None = None) -> Tokens:
    """The vocabulary that the ``text`` section asks for; ``init`` is the checkpoint to start from.

    Raises ConfigError when it cannot be had.
    """
    if text.tokens == "checkpoint":
        found = checkpoint.load(init).spec.tokens if init else None
        if found is None:
            what = "text.tokens is checkpoint, and model.init is not a CTC model"
            raise ConfigError(what, where=str(init) if init else "model.init")
        return found
    if text.tokens == "sentencepiece":
        if text.sentencepiece is None:
            raise ConfigError("text.tokens is sentencepiece, and text.sentencepiece is not given")
        return Tokens.from_sentencepiece(text.sentencepiece)
    if text.tokens == "file":
        if text.file is None:
            raise ConfigError("text.tokens is file, and text.file is not given")
        return Tokens.from_dictionary(text.file)
    if text.tokens == "from-text":
        return Tokens.from_texts(row.text or "" for row in manifest.rows)
    return Tokens()


def split(manifest: Manifest, loop: LoopConfig, collate: Collate, *, crop: bool) -> Split:
    """A manifest with its plan."""
    plan = Plan(
        manifest.durations,
        bin_seconds=loop.bin_seconds,
        min_seconds=loop.min_seconds,
        max_seconds=loop.max_seconds,
        crop=crop,
        seed=loop.seed,
        source=manifest.sha256,
        quadratic_seconds=loop.quadratic_seconds,
    )
    return Split(manifest, plan, collate)


def portions(loop: LoopConfig, plan: Plan, world: int) -> LoopConfig:
    """``loop`` with the number of bins that ``batch_hours`` asks for, if it does.

    The number follows from the plan and ``batch_hours`` alone, so that a run goes on bit by bit
    where another number of processes continues it. Raises ConfigError when they cannot share it.
    """
    if loop.batch_hours is None:
        return loop
    bins = plan.portion(loop.batch_hours * 3600)
    if bins % world:
        mean = plan.seconds / plan.bins_per_epoch
        raise ConfigError(
            f"loop.batch_hours = {loop.batch_hours} is {bins} micro-batches of {mean:.0f} s, which "
            f"cannot be spread over {world} processes",
            hint="lower loop.bin_seconds, so that there are more; or say how many: "
            f"loop.batch_hours=null loop.bins={max(1, round(bins / world)) * world}",
        )
    return loop.model_copy(update={"bins": bins})


def fit(
    run: Folder,
    place: Place,
    *,
    model: nn.Module,
    start: Start,
    objective: trainer.Objective,
    splits: Mapping[str, Split],
    loop: LoopConfig,
    optim: OptimConfig,
    best_metric: str,
) -> dict[str, Any]:
    """Train in the run folder, go on there with ``--resume``, and give a summary."""
    loop = portions(loop, splits["train"].plan, place.world)
    job = trainer.Training(
        model=model,
        spec=start.spec,
        history=start.history,
        objective=objective,
        train=splits["train"],
        valid=splits.get("valid"),
        loop=loop,
        optim=optim,
        folder=run.folder / "checkpoints",
        device=place.device,
        rank=place.rank,
        world=place.world,
        best_metric=best_metric,
        guard=loop.guard,
        bad_files=loop.bad_files,
        tensorboard=loop.tensorboard,
    )
    if run.resume:
        job.resume()
        if place.rank == 0:
            forget(run.folder / "metrics.jsonl", job.done, due=job.due)
    describe(run, job, splits, fresh_parts(model, start))
    result = trainer.train(job, run)
    seconds, skipped = job.tally.tolist()
    return {
        "checkpoint": str(run.folder),
        "updates": job.done,
        "best_step": job.best_step,
        "audio_hours_seen": round(seconds / 3600, 3),
        "skipped_updates": int(skipped),
        "valid": {name: round(value, 6) for name, value in result.items()},
    }


def forget(path: Path, step: int, *, due: bool) -> None:
    """Drop the lines of metrics that the resumed run will write again: those after ``step``.

    With ``due``, the validation at ``step`` itself was not finished.
    """
    kept = []
    with contextlib.suppress(FileNotFoundError):
        for line in path.read_text(encoding="utf-8").splitlines():
            with contextlib.suppress(ValueError):  # a line that a crash cut off
                found = json.loads(line)
                again = due and any(key.startswith("valid/") for key in found)
                if found["step"] < step + (not again):
                    kept.append(line + "\n")
        write_atomic(path, "".join(kept))


def fresh_parts(model: nn.Module, start: Start) -> list[str]:
    """The modules that no weight of ``model.init`` fits, when there was one."""
    if not start.weights:
        return []
    missing = (name for name in model.state_dict() if name not in start.weights)
    return sorted({name.partition(".")[0] for name in missing})


def describe(
    run: Folder, job: trainer.Training, splits: Mapping[str, Split], fresh: list[str]
) -> None:
    """Say once what will be done."""
    parameters = sum(p.numel() for p in job.model.parameters())
    run.say(
        f"{job.spec.kind}: {parameters / 1e6:.2f} M parameters on {job.device} "
        f"({job.loop.precision}, {job.world} process{'es' if job.world > 1 else ''})"
    )
    if fresh and not job.done:
        run.say(f"from model.init; drawn anew: {', '.join(fresh)}")
    for name, part in splits.items():
        left_out = f", {part.plan.left_out} left out" if part.plan.left_out else ""
        run.say(
            f"{name}: {part.plan.utterances} utterances, {part.plan.seconds / 3600:.2f} h"
            f" in {part.plan.bins_per_epoch} bins{left_out}"
        )
    for line in heard(job, splits["train"].plan):
        run.say(line)
    run.note(
        parameters=parameters,
        bins=job.loop.bins,
        manifests={name: part.manifest.sha256 for name, part in splits.items()},
    )


def heard(job: trainer.Training, plan: Plan) -> Iterator[str]:
    """How much audio an update and the run will hear; for pre-training, what the paper's heard.

    Why: the quality of what is learned depends mainly on the hours heard, size of an update times
    updates, down to a size below which training is unstable (arXiv 2402.13723).
    """
    loop, width = job.loop, job.spec.architecture.width
    pretraining = job.spec.kind == "pretrain"
    seconds = plan.seconds / plan.bins_per_epoch * loop.bins
    name, paper = PAPER_HOURS[max((w for w in PAPER_HOURS if w <= width), default=768)]
    yield (
        f"{loop.updates} updates of {_duration(seconds)} "
        f"({loop.bins} bins, {loop.bins // job.world} a process): "
        f"{seconds * loop.updates / 3600:,.1f} h will be heard"
        + (f" (the paper's {name}: {paper:,.0f} h)" if pretraining else "")
        + (f"; going on at update {job.done}" if job.done else "")
    )
    if pretraining and seconds < STABLE_SECONDS and width >= min(PAPER_HOURS):
        yield (
            f"warning: an update hears {_duration(seconds)}; with less than {STABLE_SECONDS} s, "
            "pre-training of this size is unstable unless the rate is very low: "
            "raise loop.batch_hours or loop.bins, which costs time and no memory"
        )


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 600 else f"{seconds / 3600:.2f} h"
