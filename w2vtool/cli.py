"""The command line: a root command, a command per task, and the one place that prints errors.

Words and flags go in, exit codes come out. Tasks are listed from the registry without importing
them; the one that is asked for is imported, and its flags come from its config.

Why plain help: rich would double the time of ``--help``; it draws tables and progress only.
"""

from __future__ import annotations

import errno
import inspect
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from w2vtool import __version__, commands, registry
from w2vtool.errors import ConfigError, PluginError, Stopped, UserError
from w2vtool.registry import TaskRef
from w2vtool.task import Task
from w2vtool.words import sort_words

if TYPE_CHECKING:
    from w2vtool.jobs import Job

_PLAIN: dict[str, Any] = {
    "add_completion": False,
    "rich_markup_mode": None,
    "pretty_exceptions_enable": False,
}
# what the machine, not w2vtool, refuses: no space, no permission, read-only; and names that cannot
# be written to: a file where a folder must be, or the other way round
_MACHINE = (
    *(errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS),
    *(errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG),
)
COMMON = ("--variant", "--print-config", "--json", "--resume", "--work", "--run-dir", "--verbose")


class LazyCommand(TyperCommand):
    """Stands in for a task in a listing; nothing of the task is imported."""

    def __init__(self, name: str, ref: TaskRef) -> None:
        summary = ref.summary.rstrip(".")
        from_ = "" if ref.origin == registry.BUILT_IN_ORIGIN else f" ({ref.origin})"
        about = f"{summary}{from_}".strip()
        super().__init__(name, help=about, short_help=about, rich_markup_mode=None)  # not cut
        self.ref = ref

    def real(self) -> Any:
        """The command itself; imports the task. Raises PluginError."""
        task = self.ref.load()
        if isinstance(task, typer.Typer):
            return typer.main.get_command(task)
        return task_command(self.ref, task)


class Tasks(TyperGroup):
    """A group of commands, some of which are tasks that are imported when they are invoked."""

    short: LazyCommand | None = None  # the task that the group's name alone stands for

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Find the command for the first word, and turn a stand-in into the command itself.

        In ``manifest ROOT``, where ROOT is no action of the group, the name alone is the command.
        """
        name, command, rest = super().resolve_command(ctx, args)
        if isinstance(command, Tasks) and command.short and not _has(command, rest[:1]):
            commands.refuse_typo(rest[:1], command.commands)
            return name, command.alone(), rest
        return name, (command.real() if isinstance(command, LazyCommand) else command), rest

    def get_short_help_str(self, limit: int = 45) -> str:
        """What the listing above says: the actions, after what the name alone does."""
        if self.short is None:
            return (
                f"{self.help}: {', '.join(self.commands)}"
                if self.help
                else ", ".join(self.commands)
            )
        built = registry.SHORT_FORMS[self.short.ref.name]
        others = ", ".join(name for name in self.commands if name != built)
        return f"{self.short.help}; {others}"

    def alone(self) -> Any:
        """The task that the group's name alone stands for; its help names the group's actions."""
        assert self.short is not None
        command = self.short.real()
        actions = [f"{name:<9}{action.help}" for name, action in self.commands.items()]
        title = f"\n\n\b\nActions, each with its own --help (w2vtool {self.name} ACTION):\n  "
        command.epilog = (command.epilog or "") + title + "\n  ".join(actions)
        return command


def _has(group: TyperGroup, words: list[str]) -> bool:
    return any(word in group.commands for word in words)


class Root(Tasks):
    """The root command: the tasks, then the commands that are about tasks."""

    def __init__(self, **attrs: Any) -> None:
        super().__init__(**attrs)
        own = dict(self.commands)
        self.commands.clear()
        for ref in registry.discover().values():
            if not ref.problem:
                self._add(ref)
        self.commands.update(own)

    def get_help_option(self, ctx: Any) -> Any:
        """``--help``, off unless given."""
        return commands.light(super().get_help_option(ctx))

    def _add(self, ref: TaskRef) -> None:
        group: TyperGroup = self
        *above, last = ref.name.split()
        if ref.name in registry.SHORT_FORMS:
            tasks = Tasks(name=last, rich_markup_mode=None)
            tasks.short = LazyCommand(last, ref)
            tasks.add_command(LazyCommand(registry.SHORT_FORMS[ref.name], ref))
            group.add_command(tasks)
            return
        for word in above:
            inside = group.commands.get(word)
            if not isinstance(inside, Tasks):
                about = registry.GROUPS.get(word)
                inside = Tasks(name=word, help=about, no_args_is_help=True, rich_markup_mode=None)
                group.add_command(inside)
            group = inside
        group.add_command(LazyCommand(last, ref))


def task_command(ref: TaskRef, task: Task[Any]) -> Any:
    """The command of a task: words, its flags, the options that all tasks have."""

    def command(words: list[str] | None = None, **options: Any) -> None:
        given = [(flag, options[name]) for name, flag in names.items()]
        _run(ref, task, words or [], options, [(f, v) for f, v in given if v not in (None, [])])

    names = {f"flag_{i}": flag for i, flag in enumerate(task.flags)}
    keyword = inspect.Parameter.KEYWORD_ONLY
    parameters = [
        inspect.Parameter(
            "words",
            inspect.Parameter.POSITIONAL_OR_KEYWORD,
            default=None,
            annotation=Annotated[list[str] | None, _words_argument(task)],
        )
    ]
    annotations = {name: _flag_annotation(ref, task, flag) for name, flag in names.items()}
    for name, annotation in {**annotations, **_common_options()}.items():
        default = False if annotation.__origin__ is bool and name not in names else None
        parameters.append(inspect.Parameter(name, keyword, default=default, annotation=annotation))
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {p.name: p.annotation for p in parameters}
    app = typer.Typer(**_PLAIN)
    epilog = f"\b\nExample:\n  {task.example}" if task.example else None
    app.command(ref.name.split()[-1], help=_about(ref, task), epilog=epilog)(command)
    return typer.main.get_command(app)


def _words_argument(task: Task[Any]) -> Any:
    metavar = "RECIPE.yaml|KEY=VALUE" + (f"|{_inputs(task)}" if task.inputs else "")
    return typer.Argument(metavar=metavar, hidden=True)  # `_about` tells what words there can be


def _inputs(task: Task[Any]) -> str:
    """``data.inputs`` → ``INPUTS``: what other words are called in the usage line."""
    return task.inputs.rpartition(".")[2].upper()


def _flag_annotation(ref: TaskRef, task: Task[Any], flag: str) -> Any:
    """Typer's annotation of a flag, by the type of the key that it is a short name of."""
    from w2vtool import fields
    from w2vtool.render import text

    key = task.flags[flag]
    info = fields.field_at(task.config, key)
    if info is None or flag in COMMON or not flag.startswith("--"):
        what = f"flag {flag} cannot stand for {key!r}"
        hint = "a flag is --name, not one that all tasks have, and the short name of a config key"
        raise PluginError(what, where=ref.origin, hint=hint)
    unit = (info.json_schema_extra or {}).get("unit", "")
    default = None if info.is_required() else fields.default_at(task.config, key)
    switch = fields.is_switch(info.annotation)
    facts = [key] if flag != f"--{key}" else []
    facts += [unit] if unit else []
    facts += ["required"] if info.is_required() else []
    if default not in (None, [], ()) and not switch:  # a path as it was written: run:emissions
        facts.append(f"default {default if isinstance(default, Path) else text(default)}")
    about = f"{info.description or ''} {'[' + '; '.join(facts) + ']' if facts else ''}".strip()
    if switch:
        if flag.startswith("--no-") and f"--{flag[5:]}" in task.flags:
            about = f"The opposite of --{flag[5:]}. [{key}]"
        return Annotated[bool, typer.Option(flag, help=about, show_default=False)]
    kind: Any = list[str] | None if fields.is_list(info.annotation) else str | None
    metavar = fields.kind(info.annotation)
    return Annotated[kind, typer.Option(flag, help=about, metavar=metavar, show_default=False)]


def _common_options() -> dict[str, Any]:
    def option(kind: Any, *names: str, **more: Any) -> Any:
        return Annotated[kind, typer.Option(*names, show_default=False, **more)]

    folder = {"metavar": "DIR"}
    return {
        "variant": option(
            str | None, "--variant", metavar="NAME", help="Use a variant of the recipe."
        ),
        "print_config": option(
            bool, "--print-config", help="Print all values with their origin, and stop."
        ),
        "json_only": option(bool, "--json", help="Print the summary as JSON, nothing else."),
        "resume": option(bool, "--resume", help="Go on with the run in the folder."),
        "work": option(
            str | None, "--work", **folder, help="Folder of the recipe's runs [runs/RECIPE]."
        ),
        "run_dir": option(str | None, "--run-dir", **folder, help="Folder of this run."),
        "verbose": option(bool, "--verbose", "-v", help="Show what is logged, on stderr."),
    }


def _about(ref: TaskRef, task: Task[Any]) -> str:
    """The docstring of the task's module, without its reasons (``Why:``), and what words mean."""
    from w2vtool import fields

    module = sys.modules.get(getattr(task.run, "__module__", ""))
    paragraphs = inspect.cleandoc((module.__doc__ if module else "") or ref.summary).split("\n\n")
    shown = [text.replace("``", "") for text in paragraphs if not text.startswith("Why")]
    words = (
        "Words: a recipe, and KEY=VALUE for what differs from it (--print-config shows all keys)"
    )
    if task.inputs:
        info = fields.field_at(task.config, task.inputs)
        if info is None:
            what = f"inputs stands for the key {task.inputs!r}, which is not there"
            raise PluginError(what, where=ref.origin)
        words += f"; {_inputs(task)}: {info.description or task.inputs}"
    return "\n\n".join([*shown, words.rstrip(".") + "."])


def _run(
    ref: TaskRef,
    task: Task[Any],
    words: Sequence[str],
    options: dict[str, Any],
    flags: list[tuple[str, Any]],
) -> None:
    """What a task command does: prepare, then print the config, or run and print the summary."""
    from w2vtool import config, jobs

    found = sort_words(words, task)
    if options["variant"] and found.recipe is None:
        raise ConfigError("a variant without a recipe", where="--variant")
    recipe = config.load_recipe(found.recipe, options["variant"]) if found.recipe else None
    switches = [(f, _switch(f) if value is True else value) for f, value in flags]
    job = jobs.prepare(
        ref,
        recipe,
        found.overrides,
        inputs=found.inputs,
        flags=switches,
        work=Path(options["work"]) if options["work"] else None,
        run_dir=Path(options["run_dir"]) if options["run_dir"] else None,
    )
    if options["print_config"]:
        sys.stdout.write(job.text())
    else:
        run_job(
            job,
            resume=options["resume"],
            json_only=options["json_only"],
            verbose=options["verbose"],
        )


def _switch(flag: str) -> str:
    """The value that a flag without a value gives: ``--no-x`` says false."""
    return "false" if flag.startswith("--no-") else "true"


def run_job(
    job: Job, *, resume: bool = False, json_only: bool = False, verbose: bool = False
) -> None:
    """Run a job as the whole of this process: logging to stderr, the summary on stdout."""
    import contextlib
    import json
    import logging

    from w2vtool import console, jobs

    first = os.environ.get("RANK", "0") == "0"
    handler = console.LogHandler(
        console.Console(people=first), logging.INFO if verbose else logging.WARNING
    )
    logging.getLogger().addHandler(handler)
    logging.getLogger("w2vtool").setLevel(logging.DEBUG if verbose else logging.INFO)
    try:
        # a library that prints must not spoil what a program reads
        with contextlib.redirect_stdout(sys.stderr) if json_only else contextlib.nullcontext():
            summary = jobs.execute(job, resume=resume, json_only=json_only)
    finally:
        logging.getLogger().removeHandler(handler)
    if json_only and first:
        sys.stdout.write(json.dumps(summary, ensure_ascii=False) + "\n")


app = typer.Typer(cls=Root, no_args_is_help=True, **_PLAIN)


def _version(wanted: bool) -> None:
    if wanted:
        sys.stdout.write(f"w2vtool {__version__}\n")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_version, help="Print the version.")
    ] = False,
) -> None:
    """wav2vec 2.0 on the command line: pre-train, fine-tune with CTC, decode.

    w2vtool TASK --help says what a task does; a task takes a recipe and key=value words.
    """


commands.register(app)


def main(args: Sequence[str] | None = None) -> None:
    """Run the command line and exit: the one place that turns errors into messages and codes."""
    sys.exit(_guarded(args))


def _guarded(args: Sequence[str] | None) -> int:
    try:
        typer.main.get_command(app).main(args=args, prog_name="w2vtool")
    except UserError as exc:
        _say(f"error: {exc}")
        return exc.exit_code
    except Stopped as exc:
        _say(f"{exc}; {exc.again} goes on from what was saved")
        return exc.exit_code
    except KeyboardInterrupt:
        return 130
    except Exception as exc:  # noqa: BLE001  the last resort: a bug, told as one
        if isinstance(exc, OSError) and exc.errno in _MACHINE:
            _say(f"error: {exc.strerror}: {exc.filename}" if exc.filename else f"error: {exc}")
            return 3
        traceback.print_exc()
        _say("this is a bug in w2vtool or in a plug-in; please report it with the lines above")
        return 1
    return 0


def _say(text: str) -> None:
    rank = os.environ.get("RANK", "0")
    sys.stderr.write(f"{text}\n" if rank == "0" else f"[rank {rank}] {text}\n")
