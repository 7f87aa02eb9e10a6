"""What a checkpoint is, in words and numbers: for ``w2vtool info`` and ``w2vtool import``.

Goes in: a checkpoint or run folder. Goes out: nested facts in JSON types.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from w2vtool import checkpoint
from w2vtool.architecture import ARCHITECTURES, Architecture, ModelConfig
from w2vtool.text import Rules
from w2vtool.tokens import Tokens


def describe(path: Path) -> dict[str, Any]:
    """Kind, sizes, vocabulary, training history, and files with their hashes.

    Raises CheckpointError when there is no checkpoint, or it is damaged.
    """
    loaded = checkpoint.load(path)
    spec, state = loaded.spec, dict(loaded.state)
    history = state.pop("history", [])
    return {
        "path": str(loaded.path),
        "kind": spec.kind,
        "parameters": sum(value.numel() for value in loaded.weights.values()),
        "architecture": architecture(spec.architecture),
        "vocabulary": vocabulary(spec.tokens, spec.rules),
        "history": history,
        "state": state,
        "files": checkpoint.files(loaded.path),
    }


def architecture(sizes: Architecture) -> dict[str, Any]:
    """The sizes, with the name of the architecture that has them, if there is one."""
    named = (
        name
        for name in ARCHITECTURES
        if ModelConfig.model_validate({"architecture": name, "normalize": sizes.normalize}).sizes()
        == sizes
    )
    return {"name": next(named, "custom"), **sizes.model_dump(mode="json")}


def vocabulary(tokens: Tokens | None, rules: Rules) -> dict[str, Any] | None:
    """The symbols of a CTC model in the order of its outputs."""
    if tokens is None:
        return None
    return {
        "kind": tokens.kind,
        "case": rules.case,
        "punctuation": rules.punctuation,
        "apostrophes": rules.apostrophes,
        "blank": tokens.blank,
        "size": len(tokens),
        "symbols": list(tokens.symbols),
    }
