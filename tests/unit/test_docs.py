"""The pages tell the truth: links, commands, flags, keys, recipes and Python in them are there."""

from __future__ import annotations

import re
import shlex
import shutil
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from w2vtool import checkpoint, cli, fields, jobs, registry
from w2vtool.config import load_recipe
from w2vtool.interop import huggingface
from w2vtool.task import Task

ROOT = Path(__file__).parents[2]
PAGES = [
    page
    for page in (
        *sorted((ROOT / "docs").glob("*.md")),
        ROOT / "README.md",
        ROOT / "recipes" / "README.md",
        ROOT / "plugins" / "README.md",
    )
    if page.exists()
]
each_page = pytest.mark.parametrize(
    "page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix()
)


def blocks(page: Path, *kinds: str) -> list[str]:
    """Fenced blocks of the given languages."""
    text = page.read_text(encoding="utf-8")
    found = re.findall(r"^```(\w*)\n(.*?)^```", text, re.M | re.S)
    return [body for kind, body in found if kind in kinds]


def links(page: Path) -> list[str]:
    """Targets of links and images that are files; code is left out."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    text = re.sub(r"`[^`\n]*`", "", text)
    found = re.findall(r"\]\(([^)\s]+)\)", text)
    return [link for link in found if not re.match(r"[a-z]+:|#", link)]


def anchors(page: Path) -> set[str]:
    """Names of headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.M)
    plain = (re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings)
    return {heading.strip().replace(" ", "-") for heading in plain}


@each_page
def test_links_lead_to_files_that_are_there(page: Path) -> None:
    for link in links(page):
        target, _, anchor = link.partition("#")
        path = page.parent / target
        assert path.exists(), link
        assert not anchor or anchor in anchors(path), link


def test_every_page_is_in_the_table_of_contents() -> None:
    contents = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"]
    named = {name for entry in contents for name in entry.values()}
    assert {page.name for page in (ROOT / "docs").glob("*.md")} <= named


def command_lines(page: Path) -> Iterator[list[str]]:
    """The words after ``w2vtool`` of every command on a page, in blocks and in the text."""
    lines = [
        line.removeprefix("$ ")
        for block in blocks(page, "console", "sh")
        for line in block.replace("\\\n", " ").splitlines()
    ]
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    lines += re.findall(r"`([^`\n]+)`", text)
    for line in lines:
        if match := re.match(r"(?:.*-m )?w2vtool ([a-z].*)", line):
            words = shlex.split(match[1], comments=True)
            yield words[: words.index(">")] if ">" in words else words


def command(words: list[str]) -> tuple[str, Any]:
    """The command that words name: its name, and the command with all its options."""
    found: Any = typer.main.get_command(cli.app)
    name = ""
    while hasattr(found, "commands"):
        word = (*words, "")[len(name.split())]
        if getattr(found, "short", None) and word not in found.commands:
            return name, found.alone()  # `manifest ROOT`: the name alone is a command
        assert word in found.commands, f"no command {name} {word}"
        found, name = found.commands[word], f"{name} {word}".strip()
    return name, found.real() if isinstance(found, cli.LazyCommand) else found


@each_page
def test_commands_flags_keys_and_recipes_on_a_page_exist(
    page: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("W2VTOOL_PLUGINS", str(ROOT / "plugins"))
    for words in command_lines(page):
        if "loudness" in words:  # the plug-in that the author's guide writes
            continue
        name, found = command(words)
        flags = {flag for parameter in found.params for flag in parameter.opts} | {"--help"}
        valued = [p for p in found.params if p.param_type_name == "option" and not p.is_flag]
        takers = {flag for parameter in valued for flag in parameter.opts}
        task = registry.discover().get(name)
        for before, word in pairwise(words[len(name.split()) - 1 :]):
            shown = f"{word!r} in: w2vtool {' '.join(words)}"
            if word.startswith("--"):
                assert word.partition("=")[0] in flags, shown
            elif word.startswith("recipes/"):
                assert (ROOT / word).exists(), shown
            elif before in takers:
                continue  # the value of a flag
            elif task and name != "run" and re.match(r"[a-z_.]+=", word):
                loaded = task.load()
                assert isinstance(loaded, Task)
                assert fields.field_at(loaded.config, word.partition("=")[0]), shown


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "yaml")], ids=str)
def test_recipes_on_a_page_hold_together(page: Path, tmp_path: Path) -> None:
    shutil.copy(ROOT / "recipes" / "librispeech.yaml", tmp_path)
    for text in blocks(page, "yaml"):
        path = tmp_path / "mine.yaml"
        path.write_text(text, encoding="utf-8")
        for variant in (None, *load_recipe(path).variants):
            assert jobs.problems(load_recipe(path, variant))[0] == []


def test_an_exported_model_is_loaded_by_transformers_as_the_page_says(
    tiny_ctc: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("transformers")
    monkeypatch.chdir(tmp_path)
    Path("digits-hf").mkdir()
    huggingface.write(Path("digits-hf"), checkpoint.load(tiny_ctc))
    (code,) = blocks(ROOT / "docs" / "exchange.md", "python")
    names: dict[str, Any] = {}
    exec(compile(code, "exchange.md", "exec"), names)  # noqa: S102  our own page
    assert names["model"].config.vocab_size == 32
    assert names["processor"].decode([5, 5, 0, 6, 4]) == "ET"
