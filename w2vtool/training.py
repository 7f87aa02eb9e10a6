"""What the training tasks have in common: set-up, first weights, tokens, and the run itself.

Goes in: config sections. Goes out: a trained model in the run folder, and a summary.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from w2vtool import checkpoint, device, trainer
from w2vtool.batches import Collate
from w2vtool.errors import CheckpointError, ConfigError, DataError
from w2vtool.manifest import Manifest
from w2vtool.plan import Plan
from w2vtool.schema import Dropouts, LoopConfig, ModelConfig, OptimConfig, TextConfig
from w2vtool.text import Tokens, frames_needed, normalize


class Folder(trainer.Recorder, Protocol):
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
        if loop.bins % world:
            raise ConfigError(
                f"loop.bins = {loop.bins} micro-batches cannot be spread over {world} processes",
                hint=f"use a multiple of {world}",
            )
        run.note(device=str(chosen), processes=world)
        yield Place(chosen, rank, world)


def initial(
    model: ModelConfig, kind: str, *, tokens: Tokens | None = None, case: str = "upper"
) -> tuple[checkpoint.Spec, dict[str, Tensor]]:
    """What to train, and the weights to start from: of ``model.init``, or none.

    A CTC model starts from the body of a pre-trained one with a fresh head, or from another CTC
    model with its head. Raises CheckpointError when the vocabularies differ.
    """
    if model.init is None:
        return checkpoint.Spec(kind, model.sizes(), tokens, case), {}
    source = checkpoint.load(model.init)
    spec = checkpoint.Spec(kind, source.spec.architecture, tokens, case)
    if source.spec.kind == kind == "ctc" and source.spec.tokens != tokens:
        old = source.spec.tokens.symbols if source.spec.tokens else ()
        new = tokens.symbols if tokens else ()
        raise CheckpointError(
            "the checkpoint was trained with another vocabulary\n"
            f"  checkpoint: {' '.join(old)}\n  this run:   {' '.join(new)}",
            where=str(source.path),
            hint="use the checkpoint's text section, or start from a pre-trained checkpoint",
        )
    if source.spec.kind == kind:
        return spec, source.weights
    body = {k: v for k, v in source.weights.items() if k.startswith("wav2vec2.")}
    return spec, body


def build(
    spec: checkpoint.Spec, weights: Mapping[str, Tensor], dropouts: Dropouts, seed: int
) -> nn.Module:
    """The model: fresh weights drawn from ``seed``, replaced by those that are given."""
    torch.manual_seed(seed)
    model = spec.build(dropouts)
    checkpoint.load_weights(model, {**model.state_dict(), **weights}, "model.init")
    return model


def tokens(text: TextConfig, manifest: Manifest) -> Tokens:
    """The vocabulary that the ``text`` section asks for."""
    if text.tokens == "sentencepiece":
        if text.sentencepiece is None:
            raise ConfigError("text.tokens is sentencepiece, and text.sentencepiece is not given")
        return Tokens.from_sentencepiece(text.sentencepiece)
    if text.tokens == "from-text":
        return Tokens.from_texts(normalize(row.text or "", text.case) for row in manifest.rows)
    return Tokens()


def check_text(manifest: Manifest, tokens: Tokens, case: str) -> None:
    """Every row must have a text that can be emitted. Raises DataError naming the rows."""
    missing = [row.id for row in manifest.rows if not row.text]
    if missing:
        raise DataError(
            f"{len(missing)} of {len(manifest.rows)} utterances have no text, first {missing[0]!r}",
            where=str(manifest.path),
            hint="CTC needs transcripts; audio alone is for pretrain",
        )
    tokens.check((row.id, row.text or "") for row in manifest.rows)
    for row in manifest.rows:
        needed = frames_needed(tokens.encode(row.text or ""))
        if needed * 320 + 80 > row.samples:
            raise DataError(
                f"{row.id}: {needed} frames are needed to emit {row.text!r}, and the audio has "
                f"{row.duration:.2f} s",
                where=str(manifest.path),
                hint="build the manifest again: it rejects such rows",
            )


def split(manifest: Manifest, loop: LoopConfig, collate: Collate, *, crop: bool) -> trainer.Split:
    """A manifest with its plan."""
    plan = Plan(
        np.array([row.duration for row in manifest.rows]),
        bin_seconds=loop.bin_seconds,
        min_seconds=loop.min_seconds,
        max_seconds=loop.max_seconds,
        crop=crop,
        seed=loop.seed,
        source=manifest.sha256,
    )
    return trainer.Split(manifest, plan, collate)


def fit(
    run: Folder,
    place: Place,
    *,
    model: nn.Module,
    spec: checkpoint.Spec,
    objective: trainer.Objective,
    splits: Mapping[str, trainer.Split],
    loop: LoopConfig,
    optim: OptimConfig,
    best_metric: str,
) -> dict[str, Any]:
    """Train in the run folder, go on there with ``--resume``, and give a summary."""
    job = trainer.Training(
        model,
        spec,
        objective,
        splits["train"],
        splits.get("valid"),
        loop,
        optim,
        run.folder / "checkpoints",
        place.device,
        place.rank,
        place.world,
        best_metric,
    )
    if run.resume:
        job.resume()
    describe(run, job, splits)
    result = trainer.train(job, run)
    best = checkpoint.best_step(job.folder)
    return {
        "checkpoint": str(run.folder),
        "updates": job.done,
        "best_step": best,
        "audio_hours_seen": round(job.seconds * place.world / 3600, 3),
        "skipped_updates": job.skipped,
        "valid": {name: round(value, 6) for name, value in result.items()},
    }


def describe(run: Folder, job: trainer.Training, splits: Mapping[str, trainer.Split]) -> None:
    """Say once what will be done."""
    parameters = sum(p.numel() for p in job.model.parameters())
    trained = splits["train"]
    per_update = trained.plan.seconds / trained.plan.bins_per_epoch * job.loop.bins / 3600
    run.say(
        f"{job.spec.kind}: {parameters / 1e6:.2f} M parameters on {job.device} "
        f"({job.loop.precision}, {job.world} process{'es' if job.world > 1 else ''})"
    )
    for name, part in splits.items():
        left_out = f", {part.plan.left_out} left out" if part.plan.left_out else ""
        run.say(
            f"{name}: {part.plan.utterances} utterances, {part.plan.seconds / 3600:.2f} h"
            f" in {part.plan.bins_per_epoch} bins{left_out}"
        )
    run.say(
        f"{job.loop.updates} updates of {per_update * 3600:.0f} s: "
        f"{per_update * job.loop.updates:.1f} h will be heard"
        + (f"; going on at update {job.done}" if job.done else "")
    )
    run.note(
        parameters=parameters,
        manifests={name: part.manifest.sha256 for name, part in splits.items()},
    )
