"""Tasks are found without being imported, and a broken plug-in stays where it is."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from w2vtool import registry
from w2vtool.errors import ConfigError, PluginError

GOOD = '''"""Say hello.

More about it.
"""
from w2vtool.api import Config, Task
TASK = Task(Config, lambda config, run: None)
'''


@pytest.fixture
def plugins(tmp_path: Path, monkeypatch: Any) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("W2VTOOL_PLUGINS", raising=False)
    (tmp_path / "plugins").mkdir()
    before = set(sys.modules)
    yield tmp_path / "plugins"
    for name in set(sys.modules) - before:
        if name.startswith("w2vtool_plugin_"):
            del sys.modules[name]


def install(folder: Path, name: str, points: str, summary: str = "A plug-in.") -> None:
    """A distribution as pip leaves it: only its metadata, so loading it would fail."""
    info = folder / f"{name}-1.2.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.2\nSummary: {summary}\n"
    )
    (info / "entry_points.txt").write_text(f"[w2vtool.tasks]\n{points}\n")


def test_built_in_tasks_are_found_everywhere(plugins: Path) -> None:
    found = registry.discover()
    assert list(found)[: len(registry.BUILT_IN)] == list(registry.BUILT_IN)
    assert all(not ref.problem for ref in found.values())


def test_a_file_is_a_task_named_after_it_and_summarised_by_its_docstring(plugins: Path) -> None:
    (plugins / "speaking_rate.py").write_text(GOOD)
    (plugins / "_shared.py").write_text("raise SystemExit")
    ref = registry.discover()["speaking-rate"]
    assert (ref.summary, ref.origin) == ("Say hello.", "plugins/speaking_rate.py")
    assert "shared" not in registry.discover() and "-shared" not in registry.discover()


def test_listing_runs_nothing(plugins: Path) -> None:
    mark = plugins.parent / "ran"
    (plugins / "nosy.py").write_text(f'"""Nosy."""\nopen({str(mark)!r}, "w")\n')
    assert registry.discover()["nosy"].summary == "Nosy." and not mark.exists()


def test_the_plugin_folder_can_be_chosen_or_switched_off(plugins: Path, monkeypatch: Any) -> None:
    (plugins / "one.py").write_text(GOOD)
    (plugins.parent / "more").mkdir()
    (plugins.parent / "more" / "two.py").write_text(GOOD)
    monkeypatch.setenv("W2VTOOL_PLUGINS", "more")
    assert "two" in registry.discover() and "one" not in registry.discover()
    monkeypatch.setenv("W2VTOOL_PLUGINS", "")
    assert set(registry.discover()) >= set(registry.BUILT_IN) and "one" not in registry.discover()


def test_entry_points_are_found_with_the_summary_of_their_distribution(
    plugins: Path, monkeypatch: Any
) -> None:
    install(plugins.parent / "site", "w2vtool-align", "align = nowhere:TASK\nlm blend = nowhere:P")
    monkeypatch.syspath_prepend(str(plugins.parent / "site"))
    found = registry.discover()
    assert (found["align"].summary, found["align"].origin) == ("A plug-in.", "w2vtool-align 1.2")
    assert found["lm blend"].target == "nowhere:P"
    with pytest.raises(PluginError, match="No module named 'nowhere'"):
        found["align"].load()


def test_built_in_wins_over_installed_wins_over_local(plugins: Path, monkeypatch: Any) -> None:
    install(plugins.parent / "site", "greedy", "decode = nowhere:A\nalign = nowhere:B")
    monkeypatch.syspath_prepend(str(plugins.parent / "site"))
    (plugins / "decode.py").write_text(GOOD)
    (plugins / "align.py").write_text(GOOD)
    found = registry.discover()
    assert found["decode"].origin == "built-in"
    assert found["decode"].shadows == ("greedy 1.2", "plugins/decode.py")
    assert (found["align"].origin, found["align"].shadows) == ("greedy 1.2", ("plugins/align.py",))


@pytest.mark.parametrize("name", ["data", "tasks", "lm", "Big"])
def test_a_name_that_cannot_be_a_command_is_listed_with_its_problem(
    plugins: Path, name: str
) -> None:
    (plugins / f"{name}.py").write_text(GOOD)
    ref = registry.discover()[name]
    assert ref.problem
    with pytest.raises(PluginError, match="cannot be run"):
        ref.load()


def test_a_good_plugin_is_loaded_once(plugins: Path) -> None:
    (plugins / "hello.py").write_text(GOOD)
    ref = registry.discover()["hello"]
    assert ref.load() is ref.load()


@pytest.mark.parametrize(
    ("source", "what"),
    [
        ("def (:", "SyntaxError"),
        ("import nowhere_at_all", "ModuleNotFoundError: No module named 'nowhere_at_all'"),
        ("raise RuntimeError('first\\nsecond')", "RuntimeError: first second"),
        ("raise SystemExit(3)", "SystemExit: 3"),
        ("x = 1", "AttributeError"),
        ("TASK = 42", "TASK is not a Task or a typer.Typer but a value of int"),
        (GOOD.replace("None)", "None, api=0)"), "is for plug-in API 0"),
        (GOOD.replace("None)", "None, api=99)"), "update w2vtool"),
        ("\x00", "null bytes"),
    ],
    ids=lambda value: value[:18].strip('"'),
)
def test_what_is_wrong_with_a_plugin_is_a_plugin_error(
    plugins: Path, source: str, what: str
) -> None:
    (plugins / "bad.py").write_text(source)
    (plugins / "latin.py").write_bytes(b'"""\xff"""')
    found = registry.discover()  # does not raise
    assert found["latin"].summary.startswith("(cannot be read")
    with pytest.raises(PluginError) as caught:
        found["bad"].load()
    assert what in str(caught.value) and caught.value.where == "plugins/bad.py"
    assert caught.value.exit_code == 4


def test_typer_apps_are_plugins_too(plugins: Path) -> None:
    import typer

    (plugins / "zoo.py").write_text('"""Zoo."""\nimport typer\nTASK = typer.Typer()\n')
    assert isinstance(registry.discover()["zoo"].load(), typer.Typer)


def test_an_unknown_task_comes_with_a_suggestion(plugins: Path) -> None:
    with pytest.raises(ConfigError, match="did you mean 'decode'"):
        registry.find("dekode")
