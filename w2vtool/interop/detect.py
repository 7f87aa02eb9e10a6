"""Which toolkit a checkpoint comes from: by what is in it, not by its name.

Goes in: a file, or a Hugging Face folder, and what the person says about it. Goes out: a
``Source``. A ``.safetensors`` file is only tensors; every other file is read by ``pickles``.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from w2vtool.errors import CheckpointError
from w2vtool.interop import fairseq, huggingface, pickles, strangers, torchaudio
from w2vtool.interop.names import NO_HINTS, Hints, Source


def read(path: Path, hints: Hints = NO_HINTS) -> Source:
    """Read a checkpoint of any of the toolkits.

    Raises CheckpointError for what is not one, is damaged, would run code, is another kind of
    model, or does not fit its own configuration.
    """
    if path.is_dir():
        return _folder(path, hints)
    if not path.exists():
        raise CheckpointError("no such file or folder", where=str(path), hint=_download(path))
    if path.suffix == ".safetensors":
        return _state_dict(path, _safetensors(path), hints)
    loaded = pickles.load(path)
    if isinstance(loaded.get("model", loaded.get("model_weight")), Mapping):
        return fairseq.read(path, loaded, hints)
    return _state_dict(path, loaded, hints)


def _folder(path: Path, hints: Hints) -> Source:
    if (path / "config.json").is_file():
        exported = path / "model.pt"  # a folder that this tool wrote for torchaudio
        return read(exported, hints) if exported.is_file() else huggingface.read(path, hints)
    if (path / "MANIFEST.json").exists() or any(path.glob("**/step-*")):
        what = "this is a checkpoint of w2vtool already"
        raise CheckpointError(what, where=str(path), hint="use it with --checkpoint or model.init")
    raise CheckpointError(
        "no config.json in this folder",
        where=str(path),
        hint="give a Hugging Face folder (config.json and weights), or a checkpoint file",
    )


def _download(path: Path) -> str:
    """What to do about ``facebook/wav2vec2-base-960h``, which is a name on the hub."""
    if path.suffix or path.parent.exists():
        return ""
    name = f"{path.parent.name}/{path.name}"
    return f"from the Hugging Face hub? hf download {name} --local-dir {path.name}"


def _safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as exc:
        raise CheckpointError(f"cannot be read: {exc}", where=str(path)) from exc


def _state_dict(path: Path, loaded: Mapping[str, Any], hints: Hints) -> Source:
    """Tensors without a configuration: whose they are is told by their names."""
    state = {key: value for key, value in loaded.items() if isinstance(value, Tensor)}
    strangers.refuse(map(str, state or loaded), "", str(path))
    if len(state) == len(loaded) and state:
        if any(key.startswith("encoder.transformer.") for key in state):
            return torchaudio.read(path, state, hints)
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
