"""The files of a Hugging Face folder: JSON, and weights as safetensors or pickles, maybe in shards.

Goes in: paths. Goes out: objects and tensors, or a CheckpointError that names the file at fault.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from w2vtool.errors import CheckpointError
from w2vtool.interop import pickles

_WEIGHTS = ("model.safetensors", "pytorch_model.bin")  # each also as shards, in this order


def read_json(path: Path) -> dict[str, Any]:
    """The object that a JSON file holds. Raises CheckpointError naming the file."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as exc:
        raise CheckpointError(f"cannot be read ({exc.strerror})", where=str(path)) from exc
    except (ValueError, RecursionError) as exc:
        raise CheckpointError(
            f"not JSON: {exc}", where=str(path), hint="is the file complete?"
        ) from exc
    if not isinstance(found, dict):
        raise CheckpointError(
            f"a JSON {type(found).__name__}, where an object belongs", where=str(path)
        )
    return found


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file in the layout of transformers."""
    path.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def weights(folder: Path) -> tuple[dict[str, Tensor], tuple[Path, ...]]:
    """All tensors of a folder, and the files that they are in; a list of shards comes first."""
    for name in _WEIGHTS:
        path, index = folder / name, folder / f"{name}.index.json"
        if path.is_file():
            return _tensors(path), (path,)
        if index.is_file():
            return _shards(index)
    raise CheckpointError(
        f"no weights: neither {' nor '.join(_WEIGHTS)}, nor their shards",
        where=str(folder),
        hint="weights of TensorFlow or Flax must be saved again by transformers with PyTorch",
    )


def _shards(index: Path) -> tuple[dict[str, Tensor], tuple[Path, ...]]:
    """The tensors of all shards that an index names, each a plain file next to it; all files."""
    places = read_json(index).get("weight_map")
    if not isinstance(places, dict) or not places:
        raise CheckpointError("no weight_map", where=str(index))
    names = sorted({str(name) for name in places.values()})
    if outside := [repr(n) for n in names if "\\" in n or n in ("", ".", "..") or "/" in n]:
        raise CheckpointError(
            f"shards must be files of this folder: {', '.join(outside)}", where=str(index)
        )
    if missing := [name for name in names if not index.with_name(name).is_file()]:
        raise CheckpointError(
            f"missing shards: {', '.join(missing)}", where=str(index), hint="download them too"
        )
    found: dict[str, Tensor] = {}
    for name in names:
        found |= _tensors(index.with_name(name))
    return found, (index, *map(index.with_name, names))


def _tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of one file. Raises CheckpointError naming it."""
    if path.suffix != ".safetensors":
        loaded = pickles.load(path)
        if strange := [key for key, value in loaded.items() if not isinstance(value, Tensor)]:
            raise CheckpointError(
                f"not a state dict: no tensors at {', '.join(strange[:8])}", where=str(path)
            )
        return loaded
    return safetensors(path)


def safetensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file. Raises CheckpointError naming it."""
    try:
        return load_file(path)
    except (OSError, SafetensorError) as exc:
        raise CheckpointError(
            f"cannot be read: {exc}", where=str(path), hint="is the file complete?"
        ) from exc
