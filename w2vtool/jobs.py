"""A task, a recipe and words go in; a job that is ready to run, and then its summary, come out.

What the command line and the ``run`` task have in common. ``prepare`` decides everything that can
be decided without doing the work, so a wrong recipe is an error before torch is imported.
"""

from __future__ import annotations

import hashlib
import os
import shlex
import signal
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from w2vtool import config as recipes
from w2vtool import fields, registry
from w2vtool.config import Recipe, Step, short
from w2vtool.errors import ConfigError, PluginError, Stopped
from w2vtool.nodes import COMMAND_LINE, Node, apply_overrides, did_you_mean, merge, put
from w2vtool.registry import TaskRef
from w2vtool.task import Task

if TYPE_CHECKING:
    from w2vtool.run import Run


@dataclass(frozen=True)
class Job:
    """A task with its config and its folder; ``words`` are left for a whole-recipe task."""

    ref: TaskRef
    task: Task[Any]
    config: Any
    origins: Mapping[str, str]
    step: str
    work: Path | None
    folder: Path
    recipe: Recipe | None = None
    words: tuple[str, ...] = ()

    def text(self) -> str:
        """The config as a recipe that loads back, each value with its origin."""
        name = self.recipe.label if self.recipe else ""
        return recipes.dump(self.config, self.origins, task=self.ref.name, name=name)

    @property
    def digest(self) -> str:
        """A hash of the config (not of its origins): equal means that the same was asked."""
        return hashlib.sha256(recipes.dump(self.config).encode()).hexdigest()


def prepare(
    ref: TaskRef,
    recipe: Recipe | None = None,
    words: Sequence[str] = (),
    *,
    inputs: Sequence[str] = (),
    flags: Iterable[tuple[str, str | Sequence[str]]] = (),
    step: Step | None = None,
    work: Path | None = None,
    run_dir: Path | None = None,
) -> Job:
    """Decide what a task will do. Raises ConfigError with all that is wrong, or PluginError.

    ``words`` (key=value) and ``flags`` ((flag, value)) are of the task's section; ``inputs`` go to
    the key that the task names. A ``step`` of a pipeline differs from the section by its values.
    """
    task = load(ref)
    node = recipe.node if recipe else Node({}, COMMAND_LINE)
    section = recipes.section(node, ref.name, task.config)
    if step is not None:
        section = merge(section, step.values) if step.values.value else section
    own, left = _sorted(words, task)
    section = apply_overrides(section, own)
    for flag, given in flags:
        section = put(section, task.flags[flag], _flag_value(task, flag, given))
    if inputs:
        section = put(section, task.inputs, _inputs(task, inputs))
    if work is None and recipe is not None:
        work = Path("runs") / recipe.label
    work = work.absolute() if work else None
    ways = {**task.flags, task.inputs.upper(): task.inputs}  # how values can be given
    config, origins = recipes.build(task.config, section, work=work, flags=ways)
    name = step.name if step else ref.name.replace(" ", "-")
    folder = run_dir.absolute() if run_dir else _folder(ref, name, work)
    return Job(ref, task, config, origins, name, work, folder, recipe, tuple(left))


def _inputs(task: Task[Any], words: Sequence[str]) -> Node:
    """Positional words as the value of the key that the task names: a list, or a single one."""
    origin = f"{COMMAND_LINE} ({task.inputs})"
    info = fields.field_at(task.config, task.inputs)
    if info is None or fields.is_list(info.annotation):
        return Node([Node(word, origin) for word in words], origin)
    if len(words) > 1:
        what = f"one {task.inputs} at a time, not {' and '.join(words)}"
        raise ConfigError(what, where=COMMAND_LINE)
    return Node(words[0], origin)


def load(ref: TaskRef) -> Task[Any]:
    """The task of a reference; a plug-in with commands of its own cannot be one."""
    task = ref.load()
    if not isinstance(task, Task):
        what = f"{ref.name!r} has commands of its own, it cannot be a step"
        raise PluginError(what, where=ref.origin)
    return task


def _folder(ref: TaskRef, name: str, work: Path | None) -> Path:
    from w2vtool.run import new_folder

    if work is not None:
        return work / name
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        hint = "the processes must agree on a folder: use a recipe, --work or --run-dir"
        raise ConfigError("several processes without a recipe", hint=hint)
    return new_folder(ref.name)


def _sorted(words: Sequence[str], task: Task[Any]) -> tuple[list[str], list[str]]:
    """Words for the task's own section, and those for the rest of the recipe."""
    if not task.whole_recipe:
        return list(words), []
    own = [w for w in words if w.partition("=")[0].split(".")[0] in task.config.model_fields]
    return own, [word for word in words if word not in own]


def _flag_value(task: Task[Any], flag: str, given: str | Sequence[str]) -> Node:
    """Flags are plain text, never YAML; those of a list may be repeated, or hold commas."""
    info = fields.field_at(task.config, task.flags[flag])
    if info is None:
        raise PluginError(
            f"flag {flag} stands for the key {task.flags[flag]!r}, which is not there"
        )
    origin = f"{COMMAND_LINE} ({flag})"
    if isinstance(given, str):
        return Node(given, origin)
    paths = Path in fields.arms(fields.items(info.annotation, 0))
    parts = given if paths else [part.strip() for word in given for part in word.split(",")]
    return Node([Node(part, origin) for part in parts], origin)


def pipeline(recipe: Recipe, words: Sequence[str] = (), *, work: Path | None = None) -> list[Job]:
    """The jobs of a recipe's ``pipeline:``, in order; all that is wrong with any is one error.

    ``words`` are of the whole recipe: ``STEP.key=…``, ``TASK.key=…`` (``lm.train.order=3``) or a
    shared section, ``data.key=…``. They win over ``with:``. Raises ConfigError, PluginError.
    """
    known = registry.discover()
    jobs: list[Job] = []
    errors: list[ConfigError] = []
    used: set[str] = set()
    for step in recipes.steps(recipe):
        if step.task not in known:
            hint, where = did_you_mean(step.task, known), step.values.origin
            errors.append(ConfigError(f"no task {step.task!r}", where=where, hint=hint))
            continue
        ref = known[step.task]
        mine = _step_words(words, step, load(ref))
        used.update(mine)
        try:
            jobs.append(prepare(ref, recipe, list(mine.values()), step=step, work=work))
        except ConfigError as exc:
            errors.append(exc)
    for word in words:
        if word not in used:
            hint = "start it with the name of a step, or with data, model or text"
            errors.append(ConfigError(f"no step takes {word!r}", where=COMMAND_LINE, hint=hint))
    recipes.raise_all(errors)
    return jobs


def _step_words(words: Sequence[str], step: Step, task: Task[Any]) -> dict[str, str]:
    """The words that a step takes, and how they read in its own section."""
    found = {}
    for word in words:
        for prefix in (f"{step.name}.", step.task.replace(" ", ".") + "."):
            if word.startswith(prefix):
                found[word] = word.removeprefix(prefix)
        if word.partition("=")[0].split(".")[0] in fields.shared_keys(task.config):
            found[word] = word
    return found


def execute(
    job: Job, *, resume: bool = False, json_only: bool = False, parent: Run | None = None
) -> dict[str, Any]:
    """Run a job in this process and give its summary, with ``run`` for the folder if it made one.

    ``parent`` is the run of a task that starts others: its console and its stop flags are shared.
    Raises what the task raises; Stopped after Ctrl-C.
    """
    from w2vtool.run import Run, jsonable

    made = Run(
        job.ref.name,
        job.folder,
        step=job.step,
        work=job.work,
        config_text=job.text(),
        digest=job.digest,
        resume=resume,
        recipe=job.recipe,
        words=job.words,
        json_only=json_only or bool(parent and parent.json_only),
        parent=parent,
    )
    with made as run:
        try:
            summary = job.task.run(job.config, run)
        except (KeyboardInterrupt, Stopped) as exc:
            stopped = exc if isinstance(exc, Stopped) else Stopped(signal.SIGINT)
            # without a recipe, the next run would have another folder
            there = "" if job.recipe else f" --run-dir {shlex.quote(short(job.folder))}"
            stopped.again = f"--resume{there}" if run.created else "the same command"
            raise stopped from None
        try:
            run.summary = jsonable(dict(summary or {}))
        except TypeError as exc:
            raise PluginError(f"summary: {exc}", where=f"task {job.ref.name}") from None
        return {"run": str(run.folder), **run.summary} if run.created else run.summary


def problems(recipe: Recipe) -> tuple[list[ConfigError], list[str]]:
    """Everything that is wrong with a recipe, and the names of what was checked.

    In a section of its own, a missing value is fine (it may come from the command line); in a step
    of the pipeline it is not.
    """
    known = registry.discover()
    checked, errors = _sections(recipe, known)
    for name in checked:
        task = known[name].load()
        if isinstance(task, Task):
            try:
                section = recipes.section(recipe.node, name, task.config)
            except ConfigError as exc:
                errors.append(exc)
                continue
            work = Path("runs").absolute() / recipe.label
            errors += recipes.problems(task.config, section, work=work, complete=False)
    if "pipeline" in recipe.node.value:
        try:
            checked += [f"step {job.step}" for job in pipeline(recipe)]
        except ConfigError as exc:
            errors.append(exc)
    return errors, checked


def _sections(recipe: Recipe, known: Mapping[str, TaskRef]) -> tuple[list[str], list[ConfigError]]:
    """The tasks that have a section, and an error for each section that belongs to nobody."""
    names: list[str] = []
    errors: list[ConfigError] = []
    groups = {name.partition(" ")[0] for name in known if " " in name}
    for key, child in recipe.node.value.items():
        if key in known:
            names.append(key)
            inside = child.value if isinstance(child.value, dict) else {}
            names += [f"{key} {sub}" for sub in inside if f"{key} {sub}" in known]
        elif key in groups and isinstance(child.value, dict):
            for sub, inner in child.value.items():
                if f"{key} {sub}" in known:
                    names.append(f"{key} {sub}")
                else:
                    subs = [name.partition(" ")[2] for name in known if name.startswith(f"{key} ")]
                    what = f"unknown section {sub!r} in {key}"
                    hint = did_you_mean(sub, subs)
                    errors.append(ConfigError(what, where=inner.origin, hint=hint))
        elif key not in (*fields.SHARED, *recipes.OWN_KEYS):
            hint = did_you_mean(key, {*groups, *known, *fields.SHARED, *recipes.OWN_KEYS})
            errors.append(ConfigError(f"unknown section {key!r}", where=child.origin, hint=hint))
    return names, errors
