"""The demo recipe as a chain: it runs through, skips what is done, and (slow) it learns."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from w2vtool.cli import main
from w2vtool.tasks.run import STATE

RECIPE = Path(__file__).parents[2] / "recipes" / "demo.yaml"
STEPS = ["manifest", "pretrain", "finetune-ctc", "lm-train", "greedy", "lexicon", "lexicon-lm"]


def run(work: Path, capsys: pytest.CaptureFixture[str], *words: str) -> tuple[dict, str]:
    """Run the chain in this process; the JSON summary and what people were told."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        main(["run", str(RECIPE), "--json", "--work", str(work), *words])
    assert ended.value.code == 0
    out, err = capsys.readouterr()
    return json.loads(out), err


def test_the_chain_runs_skips_what_is_unchanged_and_redoes_what_depends_on_a_change(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    smoke = ("--variant", "smoke")
    first, said = run(tmp_path, capsys, *smoke)
    assert list(first["steps"]) == STEPS
    assert said.count("not run yet") == len(STEPS)
    for name in ("greedy", "lexicon", "lexicon-lm"):
        assert len(Path(first["steps"][name]["hyp"]).read_text().splitlines()) == 120

    again, said = run(tmp_path, capsys, *smoke)
    assert said.count("done and unchanged, skipped") == len(STEPS)
    assert again["steps"] == first["steps"]

    _, said = run(tmp_path, capsys, *smoke, "lm.train.order=2")
    assert "lm-train: its settings have changed" in said
    assert "lexicon-lm: " in said and "lm.arpa has changed" in said
    assert said.count("skipped") == len(STEPS) - 2

    (tmp_path / "manifest" / "test.jsonl").unlink()
    _, said = run(tmp_path, capsys, *smoke, "--until", "manifest")
    assert "test.jsonl is not there" in said

    shutil.rmtree(first["steps"]["greedy"]["run"])
    _, said = run(tmp_path, capsys, *smoke, "lm.train.order=2", "--until", "greedy")
    assert "run.json is not there" in said and said.count("skipped") == 4


def test_a_step_that_does_not_exist_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["run", str(RECIPE), "--work", str(tmp_path), "--from", "pretrian"])
    assert ended.value.code == 2
    assert "no step 'pretrian'" in capsys.readouterr().err


@pytest.mark.slow
def test_the_demo_reaches_15_percent_on_voices_it_never_heard(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    summary, _ = run(tmp_path, capsys)
    steps = summary["steps"]
    assert steps["lexicon-lm"]["wer"] <= 0.15
    assert steps["lexicon-lm"]["wer"] <= steps["lexicon"]["wer"] <= steps["greedy"]["wer"]
    assert (tmp_path / STATE).exists()
