"""The contract test finds each breach, and the names promised to plug-ins are there."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import w2vtool.api
from w2vtool.api import Config, Task, knob
from w2vtool.testing import check_task, config_for, run_for


class Inner(Config):
    """A section."""

    size: int = knob(1, "Size.")


class Fine(Config):
    """A good config."""

    inner: Inner = knob(Inner(), "Inner.")
    files: list[Path] = knob([], "Files.")


def work(config: Fine, run: Any) -> dict[str, Any]:
    """Do it."""
    run.folder.joinpath("out").write_text("x")
    return {"size": config.inner.size, "files": config.files}


def task(**changes: Any) -> Task[Any]:
    given: dict[str, Any] = {
        "config": Fine,
        "run": work,
        "flags": {"--size": "inner.size"},
        "inputs": "files",
        "example": "w2vtool work --size 3 a.wav --json",
    }
    return Task(**{**given, **changes})


def test_a_good_task_passes_and_runs(tmp_path: Path) -> None:
    assert check_task(task()) == {}
    summary = check_task(task(), {"inner.size": "3", "files": "[/a.wav]"}, tmp_path)
    assert summary == {"size": 3, "files": ["/a.wav"]}
    assert (tmp_path / "test" / "out").exists() and (tmp_path / "test" / "run.json").exists()


class Silent(Config):
    """A field without a description, in a section."""

    class Part(Config):
        """The section."""

        size: int = 3

    part: Part = knob(Part(), "Part.")


@pytest.mark.parametrize(
    ("wrong", "what"),
    [
        (42, "TASK is not a w2vtool.api.Task but a value of int"),
        (task(api=0), "api is 0"),
        (task(config=dict), "config is not a subclass"),
        (
            task(config=Silent, inputs="", flags={}, example="w2vtool x"),
            "part.size has no description",
        ),
        (task(flags={"--size": "inner.sise"}), "--size stands for the key 'inner.sise'"),
        (task(flags={"--json": "inner.size"}), "--json is not --name, or all tasks have it"),
        (task(flags={"-s": "inner.size"}), "-s is not --name"),
        (task(inputs="inner.size"), "the key 'inner.size' is not a list"),
        (task(inputs="file"), "no key 'file'"),
        (task(run=lambda config: None), "run takes 1 arguments"),
        (task(example=""), "example: give a command line"),
        (task(example="w2vtool work --sise 3"), "--sise is not a flag"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_each_breach_is_named(wrong: Any, what: str) -> None:
    with pytest.raises(AssertionError) as caught:
        check_task(wrong)
    assert what in str(caught.value)


def test_all_breaches_are_named_at_once() -> None:
    with pytest.raises(AssertionError) as caught:
        check_task(task(api=0, inputs="file", example=""))
    assert len(str(caught.value).splitlines()) == 4


def test_heavy_imports_at_the_top_of_a_plugin_are_a_breach(
    tmp_path: Path, monkeypatch: Any
) -> None:
    (tmp_path / "heavy_plugin.py").write_text(
        '"""Heavy."""\nimport numpy\ndef run(config, run): ...\n'
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    import heavy_plugin

    with pytest.raises(AssertionError, match=r"heavy_plugin.py imports numpy at its top"):
        check_task(task(run=heavy_plugin.run))


def test_a_summary_that_json_cannot_hold_is_a_breach(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="the summary: object does not fit"):
        check_task(task(run=bad_summary), {}, tmp_path)


def bad_summary(config: Fine, run: Any) -> dict[str, Any]:
    """Give back what is no data."""
    return {"x": object()}


def test_helpers_make_configs_and_runs(tmp_path: Path) -> None:
    assert config_for(task(), {"inner.size": "7"}).inner.size == 7
    with run_for(tmp_path, "mine") as run:
        assert run.folder == tmp_path / "mine"


@pytest.mark.parametrize("name", w2vtool.api.__all__)
def test_every_promised_name_is_there(name: str) -> None:
    assert getattr(w2vtool.api, name) is not None
    assert name in dir(w2vtool.api)


def test_names_that_are_not_promised_are_not_there() -> None:
    with pytest.raises(AttributeError, match="no 'nonsense'"):
        w2vtool.api.__getattr__("nonsense")
    assert set(w2vtool.api._HOMES) | set(w2vtool.api._MODULES) == set(w2vtool.api.__all__)


def test_the_api_costs_nothing_until_it_is_used() -> None:
    code = (
        "import sys, w2vtool.api\n"
        "assert not {'torch', 'numpy', 'pydantic'} & set(sys.modules)\n"
        "from w2vtool.api import API, Config, Task, knob, Run, DataError\n"
        "assert not {'torch', 'numpy', 'rich'} & set(sys.modules)\n"
    )
    root = Path(__file__).parents[2]
    subprocess.run([sys.executable, "-c", code], cwd=root, check=True, timeout=60)
