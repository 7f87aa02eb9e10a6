"""What ``w2vtool info`` says about a checkpoint."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import toys

from w2vtool import checkpoint, commands
from w2vtool import describe as describing
from w2vtool.architecture import ModelConfig
from w2vtool.checkpoint import Spec
from w2vtool.describe import architecture, describe


def test_kind_sizes_vocabulary_history_and_files_are_there(tiny_ctc: Path) -> None:
    found = describe(tiny_ctc)
    assert found["kind"] == "ctc"
    assert found["vocabulary"]["symbols"][:5] == ["<s>", "<pad>", "</s>", "<unk>", "|"]
    assert (found["vocabulary"]["size"], found["vocabulary"]["case"]) == (32, "upper")
    model = Spec("ctc", toys.TINY, toys.TOKENS).build()
    assert found["parameters"] == sum(value.numel() for value in model.parameters())
    assert found["architecture"]["name"] == "custom"
    assert found["architecture"]["normalize"] is False
    assert found["history"] == []
    weights = checkpoint.find(tiny_ctc) / "model.safetensors"
    listed = found["files"]["model.safetensors"]
    assert listed["sha256"] == hashlib.sha256(weights.read_bytes()).hexdigest()
    assert listed["bytes"] == weights.stat().st_size
    json.dumps(found)


def test_a_model_that_does_not_transcribe_has_no_vocabulary(tiny_pretrained: Path) -> None:
    assert describe(tiny_pretrained)["vocabulary"] is None


def test_people_see_grouped_digits_and_no_internals(
    tiny_ctc: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    state = {"step": 12000, "guards": {"streak": 0.0}, "validated": {"loss": 6.404872070568413}}
    found = {"parameters": 2025472, "state": state, "history": [{"task": "pretrain", "step": 9000}]}
    monkeypatch.setattr(describing, "describe", lambda path: found)
    commands.info(tiny_ctc)
    shown = capsys.readouterr().out
    for value in ("2,025,472", "12,000", "task pretrain, step 9,000", "6.40487"):
        assert f" {value}\n" in shown
    assert "guards" not in shown and "6.404872" not in shown
    commands.info(tiny_ctc, as_json=True)
    assert json.loads(capsys.readouterr().out) == found


@pytest.mark.parametrize("name", ["base", "large", "large-lv60k", "small"])
def test_sizes_are_given_their_name_whatever_the_normalisation(name: str) -> None:
    sizes = ModelConfig.model_validate({"architecture": name, "normalize": True}).sizes()
    assert architecture(sizes)["name"] == name
    assert architecture(sizes.model_copy(update={"layers": 3}))["name"] == "custom"
