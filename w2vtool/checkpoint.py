"""Checkpoints: directories that are complete or absent, and say what they are.

    step-00001000/  model.safetensors  optimizer.safetensors  model.json  state.json  MANIFEST.json

``model.json`` holds kind, architecture, tokens and text rules: a checkpoint needs no other file.
``MANIFEST.json`` holds the size and SHA-256 of each file; it is written last, into a directory with
a temporary name, which is then renamed. A reader takes the newest directory that verifies. There is
no pickle anywhere.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import shutil
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

from w2vtool.errors import CheckpointError
from w2vtool.model.heads import CtcModel, PretrainModel
from w2vtool.schema import Architecture, Dropouts
from w2vtool.text import Tokens

log = logging.getLogger(__name__)
FORMAT = 1
_FILES = ("model.safetensors", "model.json", "state.json")


@dataclass(frozen=True)
class Spec:
    """What a model is: enough to build it and to feed it."""

    kind: str  # "pretrain" or "ctc"
    architecture: Architecture
    tokens: Tokens | None = None
    case: str = "upper"

    def to_json(self) -> dict[str, Any]:
        """For ``model.json``."""
        return {
            "format": FORMAT,
            "kind": self.kind,
            "architecture": self.architecture.model_dump(),
            "tokens": self.tokens.to_dict() if self.tokens else None,
            "case": self.case,
        }

    def build(self, dropouts: Dropouts | None = None) -> PretrainModel | CtcModel:
        """A model with fresh weights."""
        if self.kind == "pretrain":
            return PretrainModel(self.architecture, dropouts)
        assert self.tokens is not None
        return CtcModel(self.architecture, len(self.tokens), dropouts)


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint: ``weights`` by our names, ``state`` of the training."""

    path: Path
    spec: Spec
    weights: dict[str, Tensor]
    state: dict[str, Any]

    def model(self, dropouts: Dropouts | None = None) -> PretrainModel | CtcModel:
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
    """Load all weights. Raises CheckpointError that names every key or shape that does not fit."""
    own = model.state_dict()
    problems = [f"{key} is missing" for key in own if key not in weights]
    problems += [f"{key} has no place" for key in weights if key not in own]
    problems += [
        f"{key} is {tuple(weights[key].shape)}, the model wants {tuple(own[key].shape)}"
        for key in own
        if key in weights and own[key].shape != weights[key].shape
    ]
    if problems:
        raise CheckpointError("weights do not fit: " + "; ".join(problems[:8]), where=where)
    model.load_state_dict(dict(weights))


def save(
    folder: Path,
    step: int,
    model: nn.Module,
    spec: Spec,
    *,
    optimizer: torch.optim.Optimizer | None = None,
    state: Mapping[str, Any] | None = None,
) -> Path:
    """Write ``folder/step-…`` so that it is there completely or not at all; gives its path."""
    files = {
        "model.safetensors": save_tensors(_contiguous(model.state_dict())),
        "model.json": _json(spec.to_json()),
        "state.json": _json({"step": step, **(state or {})}),
    }
    if optimizer is not None:
        files["optimizer.safetensors"] = save_tensors(_optimizer_tensors(model, optimizer))
    hashes = {
        name: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        for name, data in files.items()
    }
    files["MANIFEST.json"] = _json({"format": FORMAT, "files": hashes})  # last
    folder.mkdir(parents=True, exist_ok=True)
    final = folder / f"step-{step:08d}"
    part = folder / f".{final.name}.{uuid.uuid4().hex[:8]}"
    part.mkdir()
    try:
        for name, data in files.items():
            with (part / name).open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        if final.exists():  # saved before at this step, e.g. by a signal
            shutil.rmtree(final)
        part.rename(final)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
    _sync(folder)
    return final


def prune(folder: Path, keep: int, best: int | None) -> None:
    """Delete all but the newest ``keep`` checkpoints and the best one; sweep unfinished ones."""
    for stale in folder.glob(".step-*"):
        shutil.rmtree(stale, ignore_errors=True)
    steps = sorted(folder.glob("step-*"))
    for path in steps[:-keep]:
        if path.name != f"step-{best or -1:08d}":
            shutil.rmtree(path, ignore_errors=True)


def mark_best(folder: Path, step: int, metric: str, value: float) -> None:
    """Remember which step was best, atomically."""
    part = folder / ".best.json"
    part.write_bytes(_json({"step": step, "metric": metric, "value": value}))
    part.rename(folder / "best.json")


def best_step(folder: Path) -> int | None:
    """The step that ``mark_best`` named, if any."""
    with contextlib.suppress(FileNotFoundError, ValueError, KeyError):
        return int(json.loads((folder / "best.json").read_text())["step"])
    return None


def find(path: Path, *, best: bool = True) -> Path:
    """The checkpoint directory that ``path`` means: itself, or one in a run folder.

    In a run folder it is the best one (with ``best``), or the newest that verifies.
    Raises CheckpointError when there is none.
    """
    if (path / "MANIFEST.json").exists() or path.name.startswith("step-"):
        return path
    folder = path / "checkpoints" if (path / "checkpoints").is_dir() else path
    steps = sorted(folder.glob("step-*"), reverse=True)
    if not steps:
        raise CheckpointError(
            "no checkpoint here" if path.exists() else "no such checkpoint",
            where=str(path),
            hint="give a run folder, or a step-… folder in its checkpoints/",
        )
    chosen = best_step(folder) if best else None
    if chosen is not None and (folder / f"step-{chosen:08d}") in steps:
        steps.insert(0, folder / f"step-{chosen:08d}")
    problems = []
    for candidate in steps:
        try:
            verify(candidate)
        except CheckpointError as exc:
            log.warning("%s; taking an older one", exc)
            problems.append(exc)
        else:
            return candidate
    raise problems[0]


def verify(path: Path) -> dict[str, bytes]:
    """The bytes of all files, if all are as MANIFEST.json says. Raises CheckpointError."""
    try:
        listed = json.loads((path / "MANIFEST.json").read_bytes())["files"]
        files = {name: (path / name).read_bytes() for name in listed}
    except (OSError, ValueError, KeyError, TypeError) as exc:
        raise CheckpointError(f"damaged checkpoint: {exc}", where=str(path)) from exc
    missing = [name for name in _FILES if name not in files]
    if missing:
        raise CheckpointError(f"damaged checkpoint: {missing} not listed", where=str(path))
    for name, data in files.items():
        if hashlib.sha256(data).hexdigest() != listed[name]["sha256"]:
            raise CheckpointError(
                f"damaged checkpoint: {name} has {len(data)} bytes and another SHA-256 than "
                f"when it was written ({listed[name]['bytes']} bytes)",
                where=str(path),
                hint="use an older checkpoint of the run, or restore this one from a copy",
            )
    return files


def load(path: Path, *, best: bool = True) -> Checkpoint:
    """Read a checkpoint directory, or the best (or newest) one of a run folder."""
    path = find(path, best=best)
    files = verify(path)
    try:
        described = json.loads(files["model.json"])
        if described["format"] != FORMAT:
            raise CheckpointError(f"checkpoint format {described['format']}", where=str(path))
        spec = Spec(
            described["kind"],
            Architecture(**described["architecture"]),
            Tokens.from_dict(described["tokens"]) if described["tokens"] else None,
            described["case"],
        )
        weights = load_tensors(files["model.safetensors"])
    except (ValueError, KeyError, SafetensorError) as exc:
        raise CheckpointError(f"cannot be read: {exc}", where=str(path)) from exc
    return Checkpoint(path, spec, weights, json.loads(files["state.json"]))


def load_optimizer(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Put the optimizer's moments back, parameter by parameter name."""
    try:
        tensors = load_tensors(verify(path)["optimizer.safetensors"])
    except KeyError as exc:
        raise CheckpointError(
            "this checkpoint has no optimizer state", where=str(path), hint="start with model.init"
        ) from exc
    for name, parameter in model.named_parameters():
        if f"{name}/step" in tensors:
            optimizer.state[parameter] = {
                key: tensors[f"{name}/{key}"].to(parameter.device)
                for key in ("step", "exp_avg", "exp_avg_sq")
            }


def describe(path: Path) -> dict[str, Any]:
    """What ``w2vtool info`` prints: kind, sizes, vocabulary, training, files."""
    loaded = load(path)
    spec = loaded.spec
    listed = json.loads((loaded.path / "MANIFEST.json").read_bytes())["files"]
    return {
        "path": str(loaded.path),
        "kind": spec.kind,
        "parameters": sum(value.numel() for value in loaded.weights.values()),
        "architecture": spec.architecture.model_dump(mode="json"),
        "tokens": list(spec.tokens.symbols) if spec.tokens else None,
        "case": spec.case,
        "state": loaded.state,
        "files": {name: entry["sha256"] for name, entry in listed.items()},
    }


def _contiguous(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().cpu().contiguous() for name, value in state.items()}


def _optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    return {
        f"{name}/{key}": value.detach().cpu().contiguous()
        for name, parameter in model.named_parameters()
        for key, value in optimizer.state.get(parameter, {}).items()
    }


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=1, sort_keys=True) + "\n").encode()


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def fingerprint(path: Path) -> str:
    """SHA-256 of the weights, from the manifest of a verified checkpoint."""
    listed = json.loads((path / "MANIFEST.json").read_bytes())["files"]
    return str(listed["model.safetensors"]["sha256"])
