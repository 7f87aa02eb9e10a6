"""The contract between w2vtool and a task. A task is a value, not a subclass."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

API = 1  # raised only when a plug-in that works today would stop working
C = TypeVar("C")


@dataclass(frozen=True)
class Task(Generic[C]):
    """What a task module or a plug-in exports as ``TASK``.

    ``config`` is a ``w2vtool.schema.Config`` subclass: its fields are the keys of the recipe
    section and of ``key=value``. ``run(config, run)`` does the work and returns a summary that
    fits in JSON, or None. ``flags`` maps ``--lm`` to the dotted key ``lm.path``: a flag is only
    ever a short name of a key. ``inputs`` is the dotted key that positional words
    (audio, folders, texts) go to, all of them if it is a list, else a single one; without it, a
    positional word can only be a recipe.
    ``example`` is a command line that runs, shown by ``--help``. ``whole_recipe`` is for a task
    that works on the recipe itself: it finds it in ``run.recipe``, and the ``key=value`` words that
    are not keys of its config in ``run.words``. ``api`` is the plug-in API that the task was
    written for.
    """

    config: type[C]
    run: Callable[[C, Any], Mapping[str, Any] | None]
    flags: Mapping[str, str] = field(default_factory=dict)
    inputs: str = ""
    example: str = ""
    whole_recipe: bool = False
    api: int = API
