"""Checkpoints: directories that are complete or absent, and say what they are.

    step-00001000/  model.safetensors  optimizer.safetensors  model.json  state.json  MANIFEST.json

Goes in: a model, its optimizer, and how far the training is. Goes out: such a directory, and back.
``model.json`` holds kind, architecture, tokens and text rules: a checkpoint needs no other file.
``state.json`` holds the training, and which steps of the run were best. How it is made sure that a
directory is complete: ``w2vtool.sealed``. A reader takes the newest that verifies. There is no
pickle anywhere.

Why the best steps stand in the newest state, not in a file of their own: two files can disagree
after a crash, one directory that appears at once cannot.
"""

from __future__ import annotations

import contextlib
import json
import logging
import re
import shutil
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

from w2vtool import sealed, sharding
from w2vtool.architecture import Architecture, Dropouts
from w2vtool.errors import CheckpointError, DataError
from w2vtool.model.heads import Backbone, CtcModel, PretrainModel
from w2vtool.text import Rules
from w2vtool.tokens import Tokens

log = logging.getLogger(__name__)
KINDS = ("pretrain", "ctc", "backbone")
_FILES = ("model.safetensors", "model.json", "state.json")
_NAME = re.compile(rf"step-\d{{8,}}({re.escape(sealed.NEW)})?")
Model = PretrainModel | CtcModel | Backbone
_SHOWN = 8  # weights that do not fit, listed in one error


@dataclass(frozen=True)
class Spec:
    """What a model is: enough to build it and to feed it."""

    kind: str  # one of KINDS
    architecture: Architecture
    tokens: Tokens | None = None  # of "ctc" always, of the others never
    case: str = "upper"
    punctuation: str = "keep"
    apostrophes: str = "keep"

    @property
    def rules(self) -> Rules:
        """How the transcripts that it was trained on are spelled."""
        return Rules.of(self)

    def to_json(self) -> dict[str, Any]:
        """For ``model.json``."""
        return {
            "format": sealed.FORMAT,
            "kind": self.kind,
            "architecture": self.architecture.model_dump(),
            "tokens": self.tokens.to_dict() if self.tokens else None,
            "case": self.case,
            "punctuation": self.punctuation,
            "apostrophes": self.apostrophes,
        }

    def build(self, dropouts: Dropouts | None = None) -> Model:
        """A model with fresh weights."""
        if self.kind == "pretrain":
            return PretrainModel(self.architecture, dropouts)
        if self.kind == "backbone":
            return Backbone(self.architecture, dropouts)
        assert self.tokens is not None
        return CtcModel(self.architecture, len(self.tokens), dropouts)


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint: ``weights`` by our names, ``state`` of the training."""

    path: Path
    spec: Spec
    weights: dict[str, Tensor]
    state: dict[str, Any]

    def model(self, dropouts: Dropouts | None = None) -> Model:
        """The model with these weights. Raises CheckpointError when they do not fit."""
        model = self.spec.build(dropouts)
        load_weights(model, self.weights, str(self.path))
        return model

    def ctc(self) -> CtcModel:
        """The model, which must be one that transcribes; in evaluation mode."""
        if self.spec.kind != "ctc":
            raise CheckpointError(
                f"this is a {self.spec.kind} checkpoint, which has no letters to decode",
                where=str(self.path),
                hint="fine-tune it first: w2vtool finetune-ctc … model.init=" + str(self.path),
            )
        model = self.model()
        assert isinstance(model, CtcModel)
        return model.eval()


def load_weights(model: nn.Module, weights: Mapping[str, Tensor], where: str) -> None:
    """Load all weights. Raises CheckpointError that names the keys and shapes that do not fit."""
    own = model.state_dict()
    problems = [f"{key} is missing" for key in own if key not in weights]
    problems += [f"{key} has no place" for key in weights if key not in own]
    problems += [
        f"{key} is {tuple(weights[key].shape)}, the model wants {tuple(own[key].shape)}"
        for key in own
        if key in weights and own[key].shape != weights[key].shape
    ]
    if problems:
        rest = len(problems) - _SHOWN
        shown = [*problems[:_SHOWN], *([f"… and {rest} more"] if rest > 0 else [])]
        raise CheckpointError("\n  ".join(["weights do not fit", *shown]), where=where)
    model.load_state_dict({key: sharding.like(own[key], weights[key]) for key in own})


def save(
    folder: Path,
    step: int,
    model: nn.Module,
    spec: Spec,
    *,
    optimizer: torch.optim.Optimizer | None = None,
    state: Mapping[str, Any] | None = None,
) -> Path:
    """Write ``folder/step-…`` so that it is there completely or not at all; gives its path.

    ``state`` must fit in JSON; its ``best_steps`` are pairs of a value and a step, the best first,
    or its ``best_step`` is the number of the best one so far.
    """
    weights, moments = tensors_of(model, optimizer)
    return write_step(folder, step, weights, spec, state or {}, moments)


def write_step(
    folder: Path,
    step: int,
    weights: Mapping[str, Tensor],
    spec: Spec,
    state: Mapping[str, Any],
    moments: Mapping[str, Tensor] | None = None,
) -> Path:
    """``save``, of tensors. What a crash left in ``folder`` is put in order first."""
    if not folder.is_dir():
        folder.mkdir(parents=True)
        sealed.sync(folder.parent)
    sweep(folder)
    path = folder / f"step-{step:08d}"
    write(path, weights, spec, {**state, "step": step}, moments)
    return path


def write(
    path: Path,
    weights: Mapping[str, Tensor],
    spec: Spec,
    state: Mapping[str, Any],
    moments: Mapping[str, Tensor] | None = None,
) -> None:
    """Write the checkpoint directory ``path``, complete or not at all; its parent must exist.

    What was there before is there until the new one is. Raises OSError.
    """
    contents: dict[str, Callable[[], bytes]] = {
        "model.safetensors": lambda: save_tensors(_on_cpu(weights)),
        "model.json": lambda: sealed.as_json(spec.to_json()),
        "state.json": lambda: sealed.as_json({"best_step": None, "step": 0, **state}),
    }
    if moments is not None:
        contents["optimizer.safetensors"] = lambda: save_tensors(_on_cpu(moments))
    sealed.write(path, contents)


def sweep(folder: Path) -> None:
    """Put in order what a crash left: delete parts, finish replacements. One process may do it."""
    for stale in folder.glob(".step-*"):
        shutil.rmtree(stale, ignore_errors=True)
    for path in _steps(folder):
        if path.suffix == sealed.NEW:
            sealed.settle(path.with_suffix(""))


def prune(
    folder: Path,
    keep: int,
    *,
    keep_best: int = 1,
    milestone_every: int = 0,
    newest: int | None = None,
    protected: Collection[int] = (),
) -> None:
    """Delete all but the newest ``keep``, the ``keep_best`` best, milestones, ``protected`` steps.

    Milestones are the multiples of ``milestone_every`` updates; 0 is none. Checkpoints later than
    ``newest``, the one just written, count for nothing: they were damaged when the run was resumed.
    """
    sweep(folder)
    steps, best = _steps(folder), best_steps(folder, newest)[:keep_best]
    later = [path for path in steps if newest is not None and _step(path) > newest]
    for path in [*later, *steps[len(later) + keep :]]:
        step = _step(path)
        milestone = milestone_every and step % milestone_every == 0
        if path in later or not (milestone or step in best or step in protected):
            sealed.discard(path)


def best_steps(folder: Path, newest: int | None = None) -> list[int]:
    """Those of the best steps that are there, the best first, as of ``newest`` or the last one.

    The newest state that can be read and names one that is there has the say: a best one for which
    the disk had no room leaves the best before it.
    """
    steps = [path for path in _steps(folder) if newest is None or _step(path) <= newest]
    there = {_step(path) for path in steps}
    for path in steps:
        with contextlib.suppress(CheckpointError):
            state = json.loads(sealed.read(path, "state.json", files(path)))
            named = [int(step) for _, step in state.get("best_steps") or []]
            found = [step for step in named or [state.get("best_step")] if step in there]
            if found:
                return found
    return []


def find(path: Path, *, best: bool = True) -> Path:
    """The checkpoint directory that ``path`` means: itself, or one in a run folder; verified.

    In a run folder it is the best one (with ``best``), or the newest that verifies.
    Raises CheckpointError when there is none.
    """
    if (path / "MANIFEST.json").exists() or (_NAME.fullmatch(path.name) and path.is_dir()):
        verify(path)
        return path
    folder = path / "checkpoints" if (path / "checkpoints").is_dir() else path
    steps = _steps(folder)
    if not steps:
        raise CheckpointError(
            "no checkpoint here" if path.exists() else "no such checkpoint",
            where=str(path),
            hint=_instead(path),
        )
    chosen = best_steps(folder)[:1] if best else []
    steps.sort(key=lambda step: _step(step) not in chosen)  # stable: the rest as it was
    problems = []
    for candidate in steps:
        try:
            verify(candidate)
        except CheckpointError as exc:
            log.warning("%s: %s; taking another one", exc.where, exc.what)
            problems.append(exc)
        else:
            return candidate
    raise problems[0]


def _instead(path: Path) -> str:
    """What to give in place of a path that is no checkpoint."""
    if path.is_file() or (path / "config.json").exists():
        return f"a model of another toolkit? w2vtool import {path} --out DIR"
    runs = sorted(found.parent for found in path.glob("*/checkpoints") if _steps(found))
    if runs:
        return f"did you mean {' or '.join(map(str, runs[:3]))}?"
    return "give a run folder, or a step-… folder in its checkpoints/"


def verify(path: Path) -> None:
    """Check every byte of a checkpoint. Raises CheckpointError naming the file that is damaged."""
    listed = files(path)
    for name in listed:
        sealed.verify(path, name, listed)


def load(path: Path, *, best: bool = True) -> Checkpoint:
    """Read a checkpoint directory, or the best (or newest) one of a run folder."""
    path = find(path, best=best)
    listed = files(path)
    try:
        described = json.loads(sealed.read(path, "model.json", listed))
        spec = Spec(
            described["kind"],
            Architecture(**described["architecture"]),
            Tokens.from_dict(described["tokens"]) if described["tokens"] else None,
            described["case"],
            described.get("punctuation", "keep"),  # not there before there was a choice
            described.get("apostrophes", "keep"),
        )
        Rules.of(spec)
        state = json.loads(sealed.read(path, "state.json", listed))
        weights = load_tensors(sealed.read(path, "model.safetensors", listed))
    except (ValueError, KeyError, TypeError, DataError, SafetensorError) as exc:
        raise CheckpointError(f"cannot be read: {exc}", where=str(path)) from exc
    if spec.kind not in KINDS or (spec.kind == "ctc" and spec.tokens is None):
        raise CheckpointError(f"a checkpoint of kind {spec.kind!r}", where=str(path))
    return Checkpoint(path, spec, weights, state)


def tensors_of(
    model: nn.Module, optimizer: torch.optim.Optimizer | None
) -> tuple[dict[str, Tensor], dict[str, Tensor] | None]:
    """Weights, and the optimizer's moments by parameter name and their own, if there is one.

    Those of a sharded model come to the first process; all must ask.
    """
    weights = sharding.whole(model.state_dict())
    if optimizer is None:
        return weights, None
    moments = {
        f"{name}/{key}": value
        for name, parameter in model.named_parameters()
        for key, value in optimizer.state.get(parameter, {}).items()
    }
    return weights, sharding.whole(moments)


def load_optimizer(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Put the optimizer's moments back, parameter by parameter name. Raises CheckpointError."""
    listed = files(path)
    if "optimizer.safetensors" not in listed:
        raise CheckpointError(
            "this checkpoint has no optimizer state", where=str(path), hint="start with model.init"
        )
    tensors = load_tensors(sealed.read(path, "optimizer.safetensors", listed))
    optimizer.state.clear()
    for name, parameter in model.named_parameters():
        if f"{name}/step" in tensors:
            optimizer.state[parameter] = {
                "step": tensors[f"{name}/step"].to(parameter.device),
                "exp_avg": sharding.like(parameter, tensors[f"{name}/exp_avg"]),
                "exp_avg_sq": sharding.like(parameter, tensors[f"{name}/exp_avg_sq"]),
            }


def files(path: Path) -> sealed.Listed:
    """Size (``bytes``) and ``sha256`` of each file of a checkpoint. Raises CheckpointError."""
    listed = sealed.manifest(path)
    if any(name not in listed for name in _FILES):
        raise sealed.damaged(path, f"{sealed.MANIFEST} is not as it was written")
    return listed


def fingerprint(path: Path) -> str:
    """SHA-256 of the weights, from the manifest of a verified checkpoint."""
    return str(files(path)["model.safetensors"]["sha256"])


def _steps(folder: Path) -> list[Path]:
    """Checkpoints of a folder, the newest first."""
    found = (path for path in folder.glob("step-*") if _NAME.fullmatch(path.name))
    return sorted(found, key=lambda path: (_step(path), path.suffix), reverse=True)


def _step(path: Path) -> int:
    return int(path.stem[5:])


def _on_cpu(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
