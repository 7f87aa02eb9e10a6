"""For authors of plug-ins: ``check_task(TASK)`` in a test says whether a task keeps the contract.

A task goes in; nothing comes out, or one AssertionError that lists everything that is wrong. With
values for its config it also runs the task in a folder, and gives back the summary.
"""

from __future__ import annotations

import ast
import inspect
import json
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from w2vtool import config as recipes
from w2vtool import fields
from w2vtool.cli import COMMON
from w2vtool.nodes import Node, command_line_value, put
from w2vtool.run import Run, jsonable
from w2vtool.schema import Config
from w2vtool.task import API, Task

HEAVY = ("torch", "torchaudio", "numpy", "sentencepiece", "kenlm")


def check_task(
    task: Any, values: Mapping[str, str] | None = None, folder: Path | None = None
) -> dict[str, Any]:
    """Check the contract; with ``values`` (key → text, as in key=value), run it in ``folder``.

    Raises AssertionError with everything that is wrong. The summary is empty without ``values``.
    """
    problems = list(_problems(task))
    if problems:
        raise AssertionError("the task breaks the contract:\n" + "\n".join(problems))
    if values is None:
        return {}
    if folder is None:
        raise TypeError("check_task needs a folder to run the task in")
    run = run_for(folder)
    with run:
        summary = dict(task.run(config_for(task, values, work=folder), run) or {})
    try:
        return dict(json.loads(json.dumps(jsonable(summary))))
    except TypeError as exc:
        raise AssertionError(f"the summary: {exc}") from None


def config_for(task: Task[Any], values: Mapping[str, str], *, work: Path | None = None) -> Any:
    """The config that ``key=value`` words give. Raises ConfigError."""
    node = Node({}, "values")
    for key, text in values.items():
        node = put(node, key, command_line_value(key, text))
    return recipes.build(task.config, node, work=work)[0]


def run_for(folder: Path, task: str = "test") -> Run:
    """A run whose folder is ``folder/task``, for calling ``task.run`` in a test."""
    return Run(task, Path(folder) / task)


def _problems(task: Any) -> Iterator[str]:
    if not isinstance(task, Task):
        yield f"TASK is not a w2vtool.api.Task but a value of {type(task).__name__}"
        return
    if task.api != API:
        yield f"api is {task.api}, this w2vtool has {API}"
    if not (isinstance(task.config, type) and issubclass(task.config, Config)):
        yield "config is not a subclass of w2vtool.api.Config"
        return
    for key, info in fields.keys(task.config):
        if not info.description:
            yield f"config: {key} has no description; give knob() one"
    yield from _flags(task)
    yield from _function(task)
    yield from _example(task)


def _flags(task: Task[Any]) -> Iterator[str]:
    for flag, key in task.flags.items():
        if not flag.startswith("--") or flag in (*COMMON, "--help"):
            yield f"flags: {flag} is not --name, or all tasks have it"
        if fields.field_at(task.config, key) is None:
            yield f"flags: {flag} stands for the key {key!r}, which is not in the config"
    if task.inputs:
        info = fields.field_at(task.config, task.inputs)
        if info is None:
            yield f"inputs: no key {task.inputs!r} in the config"
        elif not fields.is_list(info.annotation):
            yield f"inputs: the key {task.inputs!r} is not a list"


def _function(task: Task[Any]) -> Iterator[str]:
    parameters = inspect.signature(task.run).parameters.values()
    needed = [p for p in parameters if p.default is p.empty and p.kind is not p.VAR_KEYWORD]
    if len(needed) != 2 or any(p.kind is p.KEYWORD_ONLY for p in needed):
        yield f"run takes {len(needed)} arguments, not (config, run)"
    module = inspect.getmodule(task.run)
    if module is None:
        return
    if not module.__doc__:
        yield "the module has no docstring; its first line is what listings show"
    source = Path(module.__file__ or "")
    if source.suffix == ".py":
        for name in sorted(_top_level_imports(source) & set(HEAVY)):
            yield f"{source.name} imports {name} at its top; import it inside run"


def _top_level_imports(source: Path) -> set[str]:
    found = set()
    for node in ast.parse(source.read_bytes()).body:
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module.partition(".")[0])
    return found


def _example(task: Task[Any]) -> Iterator[str]:
    words = shlex.split(task.example)
    if words[:1] != ["w2vtool"] or len(words) < 2:
        yield "example: give a command line that starts with w2vtool"
    for word in words:
        flag = word.partition("=")[0]
        if flag.startswith("--") and flag not in (*task.flags, *COMMON):
            yield f"example: {flag} is not a flag of the task"
