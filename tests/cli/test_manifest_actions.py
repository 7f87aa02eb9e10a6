"""``w2vtool manifest``: its actions, its short form, and which word means what."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import toys

from w2vtool import registry
from w2vtool.config import load_recipe
from w2vtool.jobs import problems

Cli = Callable[..., Any]


@pytest.fixture
def corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with a folder named ``check`` and one named ``clips``."""
    monkeypatch.chdir(tmp_path)
    toys.corpus(tmp_path / "check", "x", 3)
    (tmp_path / "check" / "audio").rename(tmp_path / "clips")
    (tmp_path / "check" / "x.jsonl").unlink()
    (tmp_path / "clips" / "x-0.wav").rename(tmp_path / "check" / "x-0.wav")
    return tmp_path


def ids(path: Path) -> list[str]:
    return [json.loads(line)["id"] for line in path.read_text().splitlines()]


def test_the_short_form_and_build_are_the_same(corpus: Path, w2v: Cli) -> None:
    assert w2v("manifest", "clips", "--out", "a.jsonl").code == 0
    assert w2v("manifest", "build", "clips", "--out", "b.jsonl").code == 0
    assert w2v("manifest", "--out", "c.jsonl", "--jobs", "1", "clips").code == 0
    assert ids(corpus / "a.jsonl") == ["x-1", "x-2"]
    assert len({(corpus / f"{name}.jsonl").read_bytes() for name in "abc"}) == 1


def test_the_word_of_an_action_wins_and_a_path_is_a_folder(corpus: Path, w2v: Cli) -> None:
    assert w2v("manifest", "./check", "--out", "a.jsonl").code == 0
    assert w2v("manifest", "build", "check", "--out", "b.jsonl").code == 0
    assert ids(corpus / "a.jsonl") == ids(corpus / "b.jsonl") == ["x-0"]
    done = w2v("manifest", "check", "a.jsonl", "--jobs", "1")
    assert (done.code, "a.jsonl: 1 rows, " in done.out) == (0, True)
    assert w2v("manifest", "check", "--out", "c.jsonl").code == 2  # the action, without a manifest


def test_a_word_that_is_nearly_an_action_is_said_to_be(corpus: Path, w2v: Cli) -> None:
    done = w2v("manifest", "stat", "a.jsonl")
    assert (done.code, "no action 'stat'" in done.err) == (2, True)
    assert "did you mean 'stats'?" in done.err
    (corpus / "stat").mkdir()
    assert "no action" not in w2v("manifest", "stat", "--out", "a.jsonl").err
    done = w2v("manifest", "./checks", "--out", "a.jsonl")
    assert (done.code, "no such file or folder" in done.err) == (3, True)
    assert "give MANIFEST or manifest=…" in w2v("manifest", "check").err


def test_help_of_the_short_form_names_the_actions(w2v: Cli) -> None:
    out = w2v("manifest", "--help").out
    assert "Example:\n    w2vtool manifest " in out
    assert "--verify decode|header" in out
    for name in registry.BUILT_IN:
        if name.startswith("manifest "):
            action = name.split()[1]
            assert f"\n    {action} " in out
            assert f"w2vtool manifest {action} " in w2v("manifest", action, "--help").out
    assert "Usage: w2vtool manifest build " in w2v("manifest", "build", "--help").out


def test_without_words_it_says_what_is_missing(corpus: Path, w2v: Cli) -> None:
    done = w2v("manifest")
    assert (done.code, "no corpus given" in done.err) == (2, True)


def test_a_plugin_cannot_become_an_action(corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = corpus / "site" / "x-1.dist-info"
    folder.mkdir(parents=True)
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: x\nVersion: 1\nSummary: X.\n")
    (folder / "entry_points.txt").write_text("[w2vtool.tasks]\nmanifest grow = nowhere:TASK\n")
    monkeypatch.syspath_prepend(str(corpus / "site"))
    assert "both a task and a group" in registry.discover()["manifest grow"].problem


def test_built_in_groups_that_are_tasks_have_a_short_form() -> None:
    names = set(registry.BUILT_IN)
    both = {name for name in names if any(other.startswith(f"{name} ") for other in names)}
    assert both == set(registry.SHORT_FORMS)


def test_sections_of_actions_stand_in_that_of_the_task(corpus: Path, w2v: Cli) -> None:
    recipe = corpus / "r.yaml"
    recipe.write_text("manifest: {jobs: 1, out: m.jsonl, check: {jobs: 3, manifest: m.jsonl}}\n")
    found, names = problems(load_recipe(recipe))
    assert (found, names) == ([], ["manifest", "manifest check"])
    assert "jobs: 3" in w2v("manifest", "check", recipe, "--print-config").out
    assert "jobs: 1" in w2v("manifest", recipe, "--print-config").out
    recipe.write_text("manifest: {check: {jbos: 3}}\n")
    assert "did you mean 'jobs'" in w2v("check", recipe).err
    schema = json.loads(w2v("recipes", "--schema").out)
    place = schema["$defs"]["ManifestConfig"]["properties"]
    assert {"check", "roots"} <= set(place)


def test_check_lists_what_is_wrong_and_ends_with_three(corpus: Path, w2v: Cli) -> None:
    toys.corpus(corpus, "many", 30)
    assert w2v("manifest", "check", "many.jsonl").code == 0
    for number in range(25):
        (corpus / "audio" / f"many-{number}.wav").unlink()
    done = w2v("manifest", "check", "many.jsonl")
    assert done.code == 3
    assert "25 problems: 25 missing" in done.err
    assert "many.jsonl:20: many-19: " in done.err
    assert "many-20" not in done.err
    assert "and 5 more" in done.err
    listed = [
        json.loads(line) for line in Path("many.jsonl.problems.jsonl").read_text().splitlines()
    ]
    assert [one["line"] for one in listed] == list(range(1, 26))
    assert {one["reason"] for one in listed} == {"missing"}
    toys.corpus(corpus, "many", 30)
    assert w2v("manifest", "check", "many.jsonl", "--verify", "decode", "--json").code == 0
    assert not Path("many.jsonl.problems.jsonl").exists()


def test_what_is_no_manifest_is_told_by_check(corpus: Path, w2v: Cli) -> None:
    Path("bad.jsonl").write_text('{"id": 1}\n[]\n')
    done = w2v("manifest", "check", "bad.jsonl")
    assert done.code == 3
    assert "bad.jsonl:1: missing key 'audio'" in done.err
    assert "bad.jsonl:2: not a JSON object" in done.err
    assert w2v("manifest", "check", "gone.jsonl").code == 3
