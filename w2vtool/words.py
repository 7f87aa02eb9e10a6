"""The positional words of a task: a recipe, ``key=value`` overrides and inputs, in any order.

Goes in: words of the command line, and the task. Goes out: ``Words``, told apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from w2vtool.errors import ConfigError
from w2vtool.task import Task


class Words(NamedTuple):
    """Positional words, told apart."""

    recipe: Path | None
    overrides: list[str]
    inputs: list[str]


def sort_words(words: Sequence[str], task: Task[Any]) -> Words:
    """Tell recipe, ``key=value`` and inputs apart; the order does not matter. Raises ConfigError.

    A recipe ends in .yaml; for a task without inputs it may be the name of one in ./recipes. A
    file whose name looks like ``key=value`` is an input.
    """
    from w2vtool.nodes import COMMAND_LINE, OVERRIDE, did_you_mean

    recipes: list[Path] = []
    overrides: list[str] = []
    inputs: list[str] = []
    for word in words:
        if word.endswith((".yaml", ".yml")):
            recipes.append(Path(word))
        elif OVERRIDE.match(word) and not (task.inputs and _exists(word)):
            overrides.append(word)
        elif task.inputs:
            inputs.append(word)
        elif (path := Path("recipes") / f"{word}.yaml").is_file():
            recipes.append(path)
        else:
            known = [path.stem for path in Path("recipes").glob("*.yaml")]
            hint = did_you_mean(word, known) or "write key=value, or the path of a recipe"
            what = f"{word!r} is neither a recipe nor key=value"
            raise ConfigError(what, where=COMMAND_LINE, hint=hint)
    if len(recipes) > 1:
        names = " and ".join(map(str, recipes))
        raise ConfigError(f"one recipe at a time, not {names}", where=COMMAND_LINE)
    return Words(recipes[0] if recipes else None, overrides, inputs)


def _exists(word: str) -> bool:
    try:
        return Path(word).exists()
    except OSError:  # too long for a file name
        return False
