"""What ``w2vtool info`` says about a checkpoint."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import toys

from w2vtool import checkpoint
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


@pytest.mark.parametrize("name", ["base", "large", "large-lv60k", "small"])
def test_sizes_are_given_their_name_whatever_the_normalisation(name: str) -> None:
    sizes = ModelConfig.model_validate({"architecture": name, "normalize": True}).sizes()
    assert architecture(sizes)["name"] == name
    assert architecture(sizes.model_copy(update={"layers": 3}))["name"] == "custom"
