"""The commands that are about tasks and recipes: ``tasks``, ``recipes``, ``check``, ``info``.

Each prints to stdout what it finds; nothing here runs a task. Heavy imports are inside.
"""

from __future__ import annotations

import json
import sys
import traceback
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from w2vtool import registry
from w2vtool.errors import ConfigError, PluginError, UserError

_INTERNAL = {"best_steps", "bins", "due", "guards", "quarantine", "window"}  # --json has them


class LightCommand(TyperCommand):
    """A command whose options are all true or false, so that Typer reads them without pydantic."""

    def get_help_option(self, ctx: Any) -> Any:
        """``--help``, off unless given; some versions of Typer load pydantic to learn that."""
        return light(super().get_help_option(ctx))


def light(option: Any) -> Any:
    """A help option with a default that needs no conversion."""
    if option is not None:
        option.default = False
    return option


def refuse_typo(words: list[str], actions: Iterable[str]) -> None:
    """Raise ConfigError for a word that is nearly an action, and no file or folder."""
    from w2vtool.nodes import did_you_mean

    known = set(actions)
    for word in filter(str.isalpha, words):
        hint = did_you_mean(word, known)
        if "did you mean" in hint and not Path(word).exists():
            raise ConfigError(f"no action {word!r}, and no such file or folder", hint=hint)


def register(app: typer.Typer) -> None:
    """Add the commands to the root."""
    # the names of --check are words that Typer leaves alone: its own parsing of text loads pydantic
    app.command(
        "tasks",
        cls=LightCommand,
        help=f"{registry.COMMANDS['tasks']}\n\nWith --check NAME..., import them and show what "
        "goes wrong; without a name, all.",
        short_help=registry.COMMANDS["tasks"].rstrip("."),
        epilog=f"\b\nExample:\n  {registry.EXAMPLES['tasks']}",
        options_metavar="[--check [NAME]...]",
        context_settings={"allow_extra_args": True},
    )(tasks)
    for name, command in (("recipes", recipes), ("check", check), ("info", info)):
        about = registry.COMMANDS[name]
        app.command(
            name,
            help=about,
            short_help=about.rstrip("."),
            epilog=f"\b\nExample:\n  {registry.EXAMPLES[name]}",
        )(command)


def tasks(
    context: typer.Context,
    checked: Annotated[bool, typer.Option("--check", help="Import, and show tracebacks.")] = False,
) -> None:
    """List the tasks with where they come from."""
    found = registry.discover()
    if context.args and not checked:
        raise ConfigError(f"unexpected word {context.args[0]!r}", hint="tasks --check NAME")
    if checked:
        _check_tasks(found, context.args)
        return
    from w2vtool.console import Console

    rows = []
    for ref in found.values():
        origin = ref.origin + "".join(f", hides {other}" for other in ref.shadows)
        rows.append((ref.name, f"({ref.problem})" if ref.problem else ref.summary, origin))
    Console().table("", ("task", "summary", "from"), rows)


def _check_tasks(found: dict[str, registry.TaskRef], words: list[str]) -> None:
    """Load the named tasks. Raises PluginError when one cannot be loaded, after all were tried."""
    joined = " ".join(words)
    names = [joined] if joined in found else words or list(found)  # `lm train` is one name
    broken = []
    for name in names:
        try:
            registry.find(name).load()
        except PluginError as exc:
            broken.append(name)
            if exc.__cause__ is not None:
                traceback.print_exception(exc.__cause__)
            sys.stdout.write(f"{name}: {exc.where}: {exc.what}\n")
        else:
            sys.stdout.write(f"{name}: ok\n")
    if broken:
        raise PluginError(f"{len(broken)} of {len(names)} cannot be used: {', '.join(broken)}")


def recipes(
    schema: Annotated[
        bool, typer.Option("--schema", help="Print a JSON schema of recipes, for editors.")
    ] = False,
) -> None:
    """List the recipes in ./recipes, or print their schema."""
    if schema:
        sys.stdout.write(json.dumps(_schema(), indent=2, ensure_ascii=False) + "\n")
        return
    from w2vtool.console import Console

    paths = sorted(Path("recipes").glob("*.y*ml"))
    if not paths:
        raise ConfigError("no recipes here", where="recipes/*.yaml")
    Console().table("", ("recipe", "about", "variants"), [_row(path) for path in paths])


def _row(path: Path) -> tuple[str, str, str]:
    from w2vtool.config import load_recipe

    try:
        recipe = load_recipe(path)
    except UserError as exc:
        return str(path), f"(cannot be read: {exc.what.partition(chr(10))[0]})", ""
    lines = path.read_text(encoding="utf-8").splitlines()
    comment = next((line.strip("# ") for line in lines if line.startswith("#")), "")
    return str(path), recipe.about or comment, ", ".join(recipe.variants)


def _schema() -> dict[str, Any]:
    from w2vtool.render import json_schema
    from w2vtool.task import Task

    models = {}
    for name, ref in registry.discover().items():
        try:
            task = ref.load()
        except PluginError as exc:
            sys.stderr.write(f"left out: {exc}\n")
            continue
        if isinstance(task, Task):
            models[name] = task.config
    return json_schema(models)


def check(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE", help="A recipe.", show_default=False)],
    variant: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Only this variant; else all.", show_default=False),
    ] = None,
) -> None:
    """Check every section, every variant and the pipeline of a recipe; list all that is wrong."""
    from w2vtool import config, jobs

    path = Path(recipe)
    if path.suffix not in (".yaml", ".yml"):
        path = Path("recipes") / f"{recipe}.yaml"
    first = config.load_recipe(path, variant)
    others = () if variant else first.variants
    errors: list[ConfigError] = []
    checked: dict[str, None] = {}
    for one in (first, *(config.load_recipe(path, name) for name in others)):
        found, names = jobs.problems(one)
        errors += found
        checked.update(dict.fromkeys(names))
    config.raise_all(errors)
    what = ", ".join(checked) or "nothing that belongs to a task"
    also = f"; variants {', '.join(others)}" if others else ""
    sys.stdout.write(f"{config.short(first.path)}: ok ({what}{also})\n")


def info(
    path: Annotated[Path, typer.Argument(metavar="PATH", help="A folder.", show_default=False)],
    as_json: Annotated[bool, typer.Option("--json", help="Print it as JSON.")] = False,
) -> None:
    """Describe a checkpoint or a run folder."""
    from w2vtool.console import Console
    from w2vtool.describe import describe

    found = describe(path)
    if as_json:
        from w2vtool.run import jsonable

        sys.stdout.write(json.dumps(jsonable(found), ensure_ascii=False) + "\n")
    else:
        state = {key: value for key, value in found["state"].items() if key not in _INTERNAL}
        Console().table(str(path), ("what", "value"), _flat({**found, "state": state}))


def _shown(value: object) -> str:
    """A fact for people: ``2,025,472``, ``6.40487``."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return f"{value:,}" if isinstance(value, int) else f"{value:,.6g}"
    return str(value)


def _flat(facts: dict[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Nested facts as rows, with dotted names; each item of a list of facts is one row."""
    rows: list[tuple[str, str]] = []
    for key, value in facts.items():
        if isinstance(value, dict) and value:
            rows += _flat(value, f"{prefix}{key}.")
        elif isinstance(value, list) and value and isinstance(value[0], dict):
            for number, item in enumerate(value, start=1):
                short = {k: v for k, v in item.items() if not isinstance(v, dict | list)}
                long = {k: v for k, v in item.items() if isinstance(v, dict | list) and v}
                long.pop("settings", None)  # another toolkit's options fill pages: --json has them
                words = ", ".join(f"{k} {_shown(v)}" for k, v in short.items())
                rows.append((f"{prefix}{key}.{number}", words))
                rows += _flat(long, f"{prefix}{key}.{number}.")
        else:
            rows.append((f"{prefix}{key}", _shown(value)))
    return rows
