"""Which toolkit a checkpoint comes from: by what is in it, not by its name.

Goes in: a file, or a Hugging Face folder, and what the person says about it. Goes out: a
``Source``. A ``.safetensors`` file is only tensors; every other file is read by ``pickles``.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from w2vtool.errors import CheckpointError
from w2vtool.interop import fairseq, hf_files, huggingface, pickles, strangers, torchaudio
from w2vtool.interop.names import NO_HINTS, Hints, Source


def read(path: Path, hints: Hints = NO_HINTS) -> Source:
    """Read a checkpoint of any of the toolkits.

    Raises CheckpointError for what is not one, is damaged, would run code, is another kind of
    model, or does not fit its own configuration.
    """
    source = _read(path, hints)
    if hints.tokens is None or source.spec.tokens is not None:
        return source
    unused = f"--vocab is not used: this is a {source.spec.kind} model, which gives no letters"
    return source._replace(warnings=(*source.warnings, unused))


def _read(path: Path, hints: Hints) -> Source:
    if path.is_dir():
        return _folder(path, hints)
    if not path.exists():
        raise CheckpointError("no such file or folder", where=str(path), hint=_download(path))
    if path.suffix == ".safetensors":
        return _state_dict(path, hf_files.safetensors(path), hints)
    loaded = pickles.load(path)
    if isinstance(loaded.get("model", loaded.get("model_weight")), Mapping):
        return fairseq.read(path, loaded, hints)
    return _state_dict(path, loaded, hints)


def _folder(path: Path, hints: Hints) -> Source:
    exported = path / "model.pt"
    if exported.is_file() and torchaudio.config_beside(exported):  # as this tool writes it
        return _read(exported, hints)
    if (path / "config.json").is_file():
        return huggingface.read(path, hints)
    if (path / "checkpoint_best.pt").is_file():  # as this tool and fairseq write it
        return _read(path / "checkpoint_best.pt", hints)
    if (path / "MANIFEST.json").exists() or any(path.glob("**/step-*")):
        what = "this is a checkpoint of w2vtool already"
        raise CheckpointError(what, where=str(path), hint="use it with --checkpoint or model.init")
    raise CheckpointError(
        "no config.json in this folder",
        where=str(path),
        hint="give a Hugging Face folder (config.json and weights), a folder that w2vtool export "
        "wrote, or a checkpoint file",
    )


def _download(path: Path) -> str:
    """What to do about ``facebook/wav2vec2-base-960h``, which is a name on the hub."""
    if path.suffix or path.parent.exists():
        return ""
    name = f"{path.parent.name}/{path.name}"
    return f"from the Hugging Face hub? hf download {name} --local-dir {path.name}"


def _state_dict(path: Path, loaded: Mapping[str, Any], hints: Hints) -> Source:
    """Tensors without a configuration: whose they are is told by their names."""
    loaded, wrapped = torchaudio.unwrapped(loaded)
    state = {key: value for key, value in loaded.items() if isinstance(value, Tensor)}
    strangers.refuse(map(str, state or loaded), "", str(path))
    if len(state) == len(loaded) and state:
        if any(key.startswith("encoder.transformer.") for key in state):
            return torchaudio.read(path, state, hints, normalized=wrapped)
        if any("encoder.pos_conv.0." in key for key in state):
            return fairseq.read(path, {"model": state}, hints)
        if any("pos_conv_embed." in key for key in state):
            raise CheckpointError(
                "weights of transformers without their config.json",
                where=str(path),
                hint="give the folder that holds both",
            )
    shown = ", ".join(map(str, list(loaded)[:8])) or "nothing"
    raise CheckpointError(
        f"no wav2vec 2.0 checkpoint of fairseq, Hugging Face or torchaudio; it holds {shown}",
        where=str(path),
    )
