"""Checkpoints: directories that are complete or absent, and say what they are.

    step-00001000/  model.safetensors  optimizer.safetensors  model.json  state.json  MANIFEST.json

Goes in: a model, its optimizer, and how far the training is. Goes out: such a directory, and back.
``model.json`` holds kind, architecture, tokens and text rules: a checkpoint needs no other file.
``state.json`` holds the training, and which step of the run was best. ``MANIFEST.json`` holds the
size and SHA-256 of each file; it is written last, into a directory with a temporary name, which is
then renamed. A reader takes the newest directory that verifies. There is no pickle anywhere.

Why the best step stands in the newest state, not in a file of its own: two files can disagree after
a crash, one directory that appears at once cannot.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import re
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

from w2vtool.errors import CheckpointError, DataError
from w2vtool.model.heads import Backbone, CtcModel, PretrainModel
from w2vtool.schema import Architecture, Dropouts
from w2vtool.text import Tokens

log = logging.getLogger(__name__)
FORMAT = 1
KINDS = ("pretrain", "ctc", "backbone")
_FILES = ("model.safetensors", "model.json", "state.json")
_NAME = re.compile(r"step-\d{8,}")
Model = PretrainModel | CtcModel | Backbone
_SHOWN = 8  # weights that do not fit, listed in one error


@dataclass(frozen=True)
class Spec:
    """What a model is: enough to build it and to feed it."""

    kind: str  # one of KINDS
    architecture: Architecture
    tokens: Tokens | None = None  # of "ctc" always, of the others never
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
    """Write ``folder/step-…`` so that it is there completely or not at all; gives its path.

    ``state`` must fit in JSON; its ``best_step`` is the number of the best one so far, or None.
    """
    folder.mkdir(parents=True, exist_ok=True)
    final = folder / f"step-{step:08d}"
    write(
        final, model.state_dict(), spec, {**(state or {}), "step": step}, _moments(model, optimizer)
    )
    return final


def write(
    path: Path,
    weights: Mapping[str, Tensor],
    spec: Spec,
    state: Mapping[str, Any],
    moments: Mapping[str, Tensor] | None = None,
) -> None:
    """Write the checkpoint directory ``path``, complete or not at all; its parent must exist."""
    files = {
        "model.safetensors": save_tensors(_on_cpu(weights)),
        "model.json": _json(spec.to_json()),
        "state.json": _json({"best_step": None, "step": 0, **state}),
    }
    if moments is not None:
        files["optimizer.safetensors"] = save_tensors(_on_cpu(moments))
    hashes = {
        name: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        for name, data in files.items()
    }
    files["MANIFEST.json"] = _json({"format": FORMAT, "files": hashes})  # last
    part = _hidden(path)
    part.mkdir()
    try:
        for name, data in files.items():
            with (part / name).open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        _sync(part)
        _discard(path)  # only there if it was damaged, or saved by a signal just now
        part.rename(path)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
    _sync(path.parent)


def prune(folder: Path, keep: int) -> None:
    """Delete all but the newest ``keep`` checkpoints and the best; sweep what a crash left."""
    for stale in folder.glob(".step-*"):
        shutil.rmtree(stale, ignore_errors=True)
    steps, best = _steps(folder), best_step(folder)
    for path in steps[keep:]:
        if best is None or path.name != f"step-{best:08d}":
            _discard(path)


def best_step(folder: Path) -> int | None:
    """The step that was best when the newest readable checkpoint was saved, if any was."""
    for path in _steps(folder):
        with contextlib.suppress(CheckpointError):
            state = json.loads(_read(path, "state.json", _manifest(path)))
            return int(state["best_step"]) if state.get("best_step") else None
    return None


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
        foreign = path.is_file() or (path / "config.json").exists()
        raise CheckpointError(
            "no checkpoint here" if path.exists() else "no such checkpoint",
            where=str(path),
            hint=f"a model of another toolkit? w2vtool import {path} --out DIR"
            if foreign
            else "give a run folder, or a step-… folder in its checkpoints/",
        )
    chosen = best_step(folder) if best else None
    steps.sort(
        key=lambda step: step.name != f"step-{chosen or 0:08d}"
    )  # stable: the rest as it was
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


def verify(path: Path) -> None:
    """Check every byte of a checkpoint. Raises CheckpointError naming the file that is damaged."""
    listed = _manifest(path)
    for name in listed:
        _read(path, name, listed)


def load(path: Path, *, best: bool = True) -> Checkpoint:
    """Read a checkpoint directory, or the best (or newest) one of a run folder."""
    path = find(path, best=best)
    listed = _manifest(path)
    try:
        described = json.loads(_read(path, "model.json", listed))
        spec = Spec(
            described["kind"],
            Architecture(**described["architecture"]),
            Tokens.from_dict(described["tokens"]) if described["tokens"] else None,
            described["case"],
        )
        state = json.loads(_read(path, "state.json", listed))
        weights = load_tensors(_read(path, "model.safetensors", listed))
    except (ValueError, KeyError, TypeError, DataError, SafetensorError) as exc:
        raise CheckpointError(f"cannot be read: {exc}", where=str(path)) from exc
    if spec.kind not in KINDS or (spec.kind == "ctc" and spec.tokens is None):
        raise CheckpointError(f"a checkpoint of kind {spec.kind!r}", where=str(path))
    return Checkpoint(path, spec, weights, state)


def load_optimizer(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Put the optimizer's moments back, parameter by parameter name. Raises CheckpointError."""
    listed = _manifest(path)
    if "optimizer.safetensors" not in listed:
        raise CheckpointError(
            "this checkpoint has no optimizer state", where=str(path), hint="start with model.init"
        )
    tensors = load_tensors(_read(path, "optimizer.safetensors", listed))
    optimizer.state.clear()
    for name, parameter in model.named_parameters():
        if f"{name}/step" in tensors:
            optimizer.state[parameter] = {
                key: tensors[f"{name}/{key}"].to(parameter.device)
                for key in ("step", "exp_avg", "exp_avg_sq")
            }


def files(path: Path) -> dict[str, dict[str, Any]]:
    """Size (``bytes``) and ``sha256`` of each file of a checkpoint, from its manifest."""
    return _manifest(path)


def fingerprint(path: Path) -> str:
    """SHA-256 of the weights, from the manifest of a verified checkpoint."""
    return str(_manifest(path)["model.safetensors"]["sha256"])


def _steps(folder: Path) -> list[Path]:
    """Checkpoints of a folder, the newest first."""
    found = (path for path in folder.glob("step-*") if _NAME.fullmatch(path.name))
    return sorted(found, key=lambda path: int(path.name[5:]), reverse=True)


def _manifest(path: Path) -> dict[str, dict[str, Any]]:
    """Size and hash of each file of a checkpoint. Raises CheckpointError.

    It must be written as ``save`` writes it, byte by byte: nothing vouches for it but its form.
    """
    try:
        data = (path / "MANIFEST.json").read_bytes()
        content = json.loads(data)
        listed = {
            str(name): {"bytes": int(entry["bytes"]), "sha256": str(entry["sha256"])}
            for name, entry in content["files"].items()
        }
        version = content["format"]
    except OSError as exc:
        raise _damaged(path, f"MANIFEST.json: {exc.strerror}") from exc
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as exc:
        raise _damaged(path, "MANIFEST.json is not as it was written") from exc
    if version != FORMAT:
        raise CheckpointError(
            f"checkpoint format {version!r}; this w2vtool reads {FORMAT}", where=str(path)
        )
    missing = [name for name in _FILES if name not in listed]
    if missing or data != _json({"format": FORMAT, "files": listed}):
        raise _damaged(path, "MANIFEST.json is not as it was written")
    return listed


def _read(path: Path, name: str, listed: Mapping[str, Mapping[str, Any]]) -> bytes:
    """A file of a checkpoint, if it is as its manifest says. Raises CheckpointError."""
    try:
        data = (path / name).read_bytes()
    except OSError as exc:
        raise _damaged(path, f"{name}: {exc.strerror}") from exc
    wanted = listed[name]
    if len(data) != wanted["bytes"]:
        raise _damaged(path, f"{name} has {len(data)} bytes, {wanted['bytes']} were written")
    if hashlib.sha256(data).hexdigest() != wanted["sha256"]:
        raise _damaged(path, f"{name} has another SHA-256 than when it was written")
    return data


def _damaged(path: Path, what: str) -> CheckpointError:
    return CheckpointError(
        f"damaged checkpoint: {what}",
        where=str(path),
        hint="use an older checkpoint of the run, or restore this one from a copy",
    )


def _moments(model: nn.Module, optimizer: torch.optim.Optimizer | None) -> dict[str, Tensor] | None:
    if optimizer is None:
        return None
    return {
        f"{name}/{key}": value
        for name, parameter in model.named_parameters()
        for key, value in optimizer.state.get(parameter, {}).items()
    }


def _on_cpu(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().cpu().contiguous() for name, value in tensors.items()}


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=1, sort_keys=True, allow_nan=False) + "\n").encode()


def _hidden(path: Path) -> Path:
    return path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")


def _discard(path: Path) -> None:
    """Delete a checkpoint, if it is there, without ever leaving a part of it under its name."""
    trash = _hidden(path)
    with contextlib.suppress(FileNotFoundError):
        path.rename(trash)
        shutil.rmtree(trash, ignore_errors=True)


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
