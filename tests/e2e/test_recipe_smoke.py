"""The smoke variant of every recipe runs on a look-alike of its corpus, to transcripts."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from w2vtool import jobs
from w2vtool.config import load_recipe
from w2vtool.text import Rules

RECIPES = Path(__file__).parents[2] / "recipes"
# Recipes with another corpus than a look-alike: their own, one that a person has, one tested alone
ELSEWHERE = {"demo", "digits", "librispeech"}
LOOKALIKES = sorted({path.stem for path in RECIPES.glob("*.yaml")} - ELSEWHERE)


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("name", LOOKALIKES)
def test_a_recipe_finds_the_splits_of_its_corpus(
    name: str, made: Callable[[str], Path], tmp_path: Path
) -> None:
    """The parts that the recipe itself names are there, and not only those of its smoke variant."""
    from w2vtool import splits

    recipe = load_recipe(RECIPES / f"{name}.yaml")
    words = [f"data.root={made(name)}", "data.jobs=1"]
    data = jobs.pipeline(recipe, words)[0].config.data
    data = data.model_copy(update={"manifests": tmp_path})
    if name == "librilight":  # of its three sizes there is one
        data = data.model_copy(update={"train": ("small",)})
    if name == "gigaspeech":
        data = data.model_copy(update={"train": ("GigaSpeech.json:XL",)})
    opened = {
        split: splits.build(data, split, rules=Rules("keep")).built.rows for split in splits.SPLITS
    }
    ids = {split: {row.id for row in rows} for split, rows in opened.items()}
    assert all(ids.values())
    assert not ids["train"] & (ids["valid"] | ids["test"])
    assert all(row.text for row in opened["test"])


@pytest.mark.parametrize("name", LOOKALIKES)
def test_a_smoke_variant_goes_all_the_way_to_transcripts(
    name: str,
    made: Callable[[str], Path],
    w2v: Callable[..., Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    recipe, on_cpu = RECIPES / f"{name}.yaml", ("finetune-ctc.loop.device=cpu", "decode.device=cpu")
    done = w2v("run", recipe, "--variant", "smoke", f"data.root={made(name)}", *on_cpu, "--json")
    assert done.code == 0, done.err
    steps = json.loads(done.out)["steps"]
    assert list(steps)[-2:] == ["finetune-ctc", "decode"]
    work = tmp_path / "runs" / f"{name}-smoke"
    trained = lines(work / "finetune-ctc" / "metrics.jsonl")
    assert [row["step"] for row in trained if "train/loss" in row] == [1, 2]
    tests = {row["id"]: row["text"] for row in lines(work / "manifest" / "test.jsonl")}
    assert tests
    assert {row["id"]: row["reference"] for row in lines(work / "decode" / "hyp.jsonl")} == tests
