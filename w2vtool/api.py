"""What plug-ins may import: ``from w2vtool.api import Config, Task, knob``.

The names here keep their meaning while ``API`` stays the same; anything else in the package may
change. Importing this module costs nothing: each name is imported when it is first used, so a
plug-in that imports ``audio`` at its top does not slow a listing, as listings import no plug-in.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from w2vtool import audio, checkpoint, device, emissions, manifest, score
    from w2vtool.architecture import ModelConfig
    from w2vtool.errors import (
        CheckpointError,
        ConfigError,
        DataError,
        PluginError,
        Stopped,
        UserError,
    )
    from w2vtool.manifest import Candidate, Manifest, Rejected, Utterance
    from w2vtool.run import Run, file_sha256, write_atomic
    from w2vtool.schema import Config, DataConfig, TextConfig, knob
    from w2vtool.task import API, Task
    from w2vtool.tokens import Tokens

_HOMES = {
    "API": "task",
    "Candidate": "manifest",
    "CheckpointError": "errors",
    "Config": "schema",
    "ConfigError": "errors",
    "DataConfig": "schema",
    "DataError": "errors",
    "Manifest": "manifest",
    "ModelConfig": "architecture",
    "PluginError": "errors",
    "Rejected": "manifest",
    "Run": "run",
    "Stopped": "errors",
    "Task": "task",
    "TextConfig": "schema",
    "Tokens": "tokens",
    "UserError": "errors",
    "Utterance": "manifest",
    "file_sha256": "run",
    "knob": "schema",
    "write_atomic": "run",
}
_MODULES = ("audio", "checkpoint", "device", "emissions", "manifest", "score")

__all__ = [
    "API",
    "Candidate",
    "CheckpointError",
    "Config",
    "ConfigError",
    "DataConfig",
    "DataError",
    "Manifest",
    "ModelConfig",
    "PluginError",
    "Rejected",
    "Run",
    "Stopped",
    "Task",
    "TextConfig",
    "Tokens",
    "UserError",
    "Utterance",
    "audio",
    "checkpoint",
    "device",
    "emissions",
    "file_sha256",
    "knob",
    "manifest",
    "score",
    "write_atomic",
]


def __getattr__(name: str) -> Any:
    """Import a name on first use (PEP 562)."""
    if name in _MODULES:
        return import_module(f"w2vtool.{name}")
    if name in _HOMES:
        return getattr(import_module(f"w2vtool.{_HOMES[name]}"), name)
    raise AttributeError(f"w2vtool.api has no {name!r}")


def __dir__() -> list[str]:
    return __all__
