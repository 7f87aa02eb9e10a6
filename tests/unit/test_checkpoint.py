"""A checkpoint is complete or absent; any damage is found and named."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import toys
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from w2vtool import checkpoint, optim, sealed
from w2vtool.architecture import Architecture
from w2vtool.checkpoint import Spec
from w2vtool.errors import CheckpointError
from w2vtool.model.heads import CtcModel
from w2vtool.schema import OptimConfig
from w2vtool.text import Rules
from w2vtool.tokens import Tokens

SPEC = Spec("pretrain", toys.TINY)


def small() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Linear(3, 2)


def steps(folder: Path) -> list[int]:
    return sorted(int(path.name[5:]) for path in folder.glob("step-*"))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with checkpoints of steps 1 and 2."""
    folder = tmp_path_factory.mktemp("whole")
    model = SPEC.build()
    optimizer = optim.adamw(model.parameters(), OptimConfig())
    for step in (1, 2):
        checkpoint.save(folder, step, model, SPEC, optimizer=optimizer, state={"seconds": 1.5})
    return folder


def test_what_is_saved_is_what_is_loaded(tmp_path: Path) -> None:
    tokens = Tokens.from_texts(["ÄÖ", "A"])
    spec = Spec("ctc", toys.TINY, tokens, "keep")
    model = spec.build()
    path = checkpoint.save(tmp_path, 12, model, spec, state={"seconds": 0.1, "best_step": None})
    loaded = checkpoint.load(tmp_path)
    assert loaded.path == path == tmp_path / "step-00000012"
    assert loaded.spec == spec
    assert loaded.state == {"seconds": 0.1, "best_step": None, "step": 12}
    again = loaded.ctc()
    assert isinstance(again, CtcModel)
    assert not again.training
    for name, value in model.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name


def test_a_sentencepiece_vocabulary_is_within(tmp_path: Path) -> None:
    tokens = Tokens(("<s>", "<pad>", "</s>", "<unk>", "▁A"), kind="sentencepiece", model=b"\0\xff")
    spec = Spec("ctc", toys.TINY, tokens)
    checkpoint.save(tmp_path, 1, spec.build(), spec)
    assert checkpoint.load(tmp_path).spec.tokens == tokens


@pytest.mark.parametrize("fails_at", range(5))
def test_a_save_that_fails_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails_at: int
) -> None:
    checkpoint.save(tmp_path, 1, small(), SPEC)
    calls = iter(range(100))

    def fsync(handle: int) -> None:
        if next(calls) == fails_at:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(sealed.os, "fsync", fsync)
    with pytest.raises(OSError, match="No space left"):
        checkpoint.save(tmp_path, 2, small(), SPEC)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]
    checkpoint.verify(checkpoint.find(tmp_path))


def test_what_a_crash_left_is_swept(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, 1, small(), SPEC)
    part = tmp_path / ".step-00000002.0123abcd"
    part.mkdir()
    (part / "model.safetensors").write_bytes(b"half")
    assert checkpoint.find(tmp_path).name == "step-00000001"
    checkpoint.prune(tmp_path, 2)
    assert not part.exists()


def test_saving_a_step_again_replaces_it(tmp_path: Path) -> None:
    model = small()
    checkpoint.save(tmp_path, 1, model, SPEC)
    with torch.no_grad():
        model.weight.fill_(7.0)
    checkpoint.save(tmp_path, 1, model, SPEC)
    assert torch.equal(checkpoint.load(tmp_path).weights["weight"], model.weight)
    assert len(list(tmp_path.iterdir())) == 1


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_any_changed_byte_is_found_and_the_older_one_taken(
    whole: Path, data: st.DataObject
) -> None:
    newest = whole / "step-00000002"
    path = data.draw(st.sampled_from(sorted(newest.iterdir())))
    content = path.read_bytes()
    at = data.draw(st.integers(0, len(content) - 1))
    other = data.draw(st.integers(1, 255))
    try:
        path.write_bytes(content[:at] + bytes([content[at] ^ other]) + content[at + 1 :])
        with pytest.raises(
            CheckpointError, match=r"damaged checkpoint|checkpoint format"
        ) as caught:
            checkpoint.load(newest)
        assert caught.value.where == str(newest)
        if path.name != "MANIFEST.json":
            assert path.name in caught.value.what
        assert checkpoint.load(whole).path.name == "step-00000001"
    finally:
        path.write_bytes(content)


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_any_file_of_another_length_is_found_and_named_and_the_older_one_taken(
    whole: Path, data: st.DataObject
) -> None:
    newest = whole / "step-00000002"
    path = data.draw(st.sampled_from(sorted(newest.iterdir())))
    content = path.read_bytes()
    cut = st.integers(0, len(content) - 1).map(lambda length: content[:length])
    grown = st.binary(min_size=1, max_size=9).map(lambda more: content + more)
    try:
        path.write_bytes(data.draw(cut | grown))
        with pytest.raises(CheckpointError, match=f"damaged checkpoint.*{path.name}"):
            checkpoint.load(newest)
        assert checkpoint.load(whole).path.name == "step-00000001"
    finally:
        path.write_bytes(content)


def test_files_of_different_checkpoints_are_not_mixed(whole: Path, tmp_path: Path) -> None:
    one, other = whole / "step-00000001", whole / "step-00000002"
    for name in ("state.json", "MANIFEST.json"):  # the weights of both are equal
        mixed = tmp_path / name / "step-00000002"
        shutil.copytree(other, mixed)
        shutil.copy(one / name, mixed / name)
        with pytest.raises(CheckpointError, match=r"state\.json has another SHA-256"):
            checkpoint.load(mixed)


@pytest.mark.parametrize(
    "name", ["model.safetensors", "optimizer.safetensors", "model.json", "MANIFEST.json"]
)
def test_a_missing_file_is_named(whole: Path, tmp_path: Path, name: str) -> None:
    copy = tmp_path / "step-00000001"
    shutil.copytree(whole / "step-00000001", copy)
    (copy / name).unlink()
    with pytest.raises(CheckpointError, match=f"damaged checkpoint: {name}: No such file"):
        checkpoint.load(copy)


def test_when_all_are_damaged_the_newest_is_named(tmp_path: Path) -> None:
    for step in (1, 2):
        path = checkpoint.save(tmp_path, step, small(), SPEC)
        (path / "state.json").write_text("{}")
    with pytest.raises(CheckpointError) as caught:
        checkpoint.load(tmp_path)
    assert caught.value.where.endswith("step-00000002")


def test_the_newest_and_the_best_are_kept(tmp_path: Path) -> None:
    for step in range(1, 7):
        state = {"best_step": 2 if step >= 2 else None}
        checkpoint.save(tmp_path, step, small(), SPEC, state=state)
        checkpoint.prune(tmp_path, 2)
    assert steps(tmp_path) == [2, 5, 6]
    assert checkpoint.best_steps(tmp_path) == [2]
    assert checkpoint.find(tmp_path).name == "step-00000002"
    assert checkpoint.find(tmp_path, best=False).name == "step-00000006"


def test_a_checkpoint_that_replaces_another_counts_before_it(tmp_path: Path) -> None:
    """As if a crash had come when both were there."""
    old = checkpoint.save(tmp_path, 1, small(), SPEC, state={"age": "old"})
    old.rename(tmp_path / "kept")
    checkpoint.save(tmp_path, 1, small(), SPEC, state={"age": "new"})
    old.rename(tmp_path / "step-00000001.new")
    (tmp_path / "kept").rename(old)
    assert checkpoint.load(tmp_path).state["age"] == "new"
    (tmp_path / "step-00000001.new" / "model.safetensors").write_bytes(b"")
    assert checkpoint.load(tmp_path).state["age"] == "old"


def test_a_folder_that_replaces_another_waits_for_its_name_only_once(tmp_path: Path) -> None:
    """A crash between the two names is made good by the next one that is written."""
    path = tmp_path / "out"
    sealed.write(path, {"a": lambda: b"1"})
    path.rename(tmp_path / "out.new")
    sealed.write(path, {"a": lambda: b"2"})
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
    assert sealed.read(path, "a", sealed.manifest(path)) == b"2"


def test_the_newest_is_the_one_with_the_highest_number(tmp_path: Path) -> None:
    for step in (99_999_999, 100_000_000):
        checkpoint.save(tmp_path, step, small(), SPEC)
    assert checkpoint.find(tmp_path).name == "step-100000000"


def test_a_damaged_best_gives_way_to_the_newest(tmp_path: Path, caplog) -> None:
    for step in (1, 2, 3):
        checkpoint.save(tmp_path, step, small(), SPEC, state={"best_step": 1})
    (tmp_path / "step-00000001" / "model.safetensors").write_bytes(b"")
    assert checkpoint.find(tmp_path).name == "step-00000003"
    assert "step-00000001" in caplog.text
    assert "model.safetensors has 0 bytes" in caplog.text


def test_a_run_folder_may_be_called_like_a_step(tmp_path: Path) -> None:
    run = tmp_path / "step-1"
    path = checkpoint.save(run / "checkpoints", 5, small(), SPEC)
    assert checkpoint.find(run) == path


@pytest.mark.parametrize("name", ["step-00000001", "run", "model.pt", "empty"])
def test_what_is_no_checkpoint_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "model.pt").write_bytes(b"PK")
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match=r"no checkpoint here|no such checkpoint"):
        checkpoint.load(tmp_path / name)


def test_the_folder_of_a_recipes_runs_names_those_with_checkpoints(tmp_path: Path) -> None:
    for name in ("pretrain", "finetune-ctc"):
        checkpoint.save(tmp_path / name / "checkpoints", 1, small(), SPEC)
    (tmp_path / "lm" / "checkpoints").mkdir(parents=True)
    with pytest.raises(CheckpointError, match="no checkpoint here") as caught:
        checkpoint.find(tmp_path)
    first, second = tmp_path / "finetune-ctc", tmp_path / "pretrain"
    assert caught.value.hint == f"did you mean {first} or {second}?"


def test_weights_that_do_not_fit_are_named_with_both_shapes(tmp_path: Path) -> None:
    path = checkpoint.save(tmp_path, 1, SPEC.build(), SPEC)
    weights = checkpoint.load(path).weights
    weights["extra"] = weights.pop("project_context.bias")
    wider = Spec("pretrain", Architecture(**{**toys.SIZES, "ffn_width": 64}))
    with pytest.raises(CheckpointError) as caught:
        checkpoint.load_weights(wider.build(), weights, "here")
    assert "project_context.bias is missing" in caught.value.what
    assert "extra has no place" in caught.value.what
    assert "up.weight is (32, 16), the model wants (64, 16)" in caught.value.what


def test_the_optimizer_comes_back_bit_by_bit(tmp_path: Path) -> None:
    model = SPEC.build()
    optimizer = optim.adamw(model.parameters(), OptimConfig())
    frozen = "wav2vec2.mask_embedding"  # never has a gradient, and so no moments
    for name, parameter in model.named_parameters():
        parameter.grad = None if name == frozen else torch.randn_like(parameter)
    optimizer.step()
    path = checkpoint.save(tmp_path, 1, model, SPEC, optimizer=optimizer)
    again = SPEC.build()
    restored = optim.adamw(again.parameters(), OptimConfig())
    checkpoint.load_optimizer(path, again, restored)
    assert len(restored.state) == len(list(again.parameters())) - 1
    for (name, old), new in zip(model.named_parameters(), again.parameters(), strict=True):
        assert optimizer.state[old].keys() == restored.state[new].keys(), name
        for key, value in optimizer.state[old].items():
            assert torch.equal(value, restored.state[new][key]), (name, key)


def test_a_checkpoint_without_optimizer_says_so(tmp_path: Path) -> None:
    model = small()
    path = checkpoint.save(tmp_path, 1, model, SPEC)
    optimizer = optim.adamw(model.parameters(), OptimConfig())
    with pytest.raises(CheckpointError, match="no optimizer state"):
        checkpoint.load_optimizer(path, model, optimizer)


def test_a_pretrained_model_cannot_decode(tiny_pretrained: Path) -> None:
    with pytest.raises(
        CheckpointError, match="pretrain checkpoint, which has no letters"
    ) as caught:
        checkpoint.load(tiny_pretrained).ctc()
    assert caught.value.exit_code == 5


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("kind", "hubert"),
        ("tokens", None),
        ("tokens", {"symbols": 3}),
        ("architecture", {"width": -1}),
        ("architecture", None),
    ],
)
def test_a_description_that_makes_no_model_is_refused(tmp_path: Path, key: str, value) -> None:
    spec = Spec("ctc", toys.TINY, toys.TOKENS)
    path = checkpoint.save(tmp_path, 1, spec.build(), spec)
    described = json.loads((path / "model.json").read_text())
    content = json.dumps({**described, key: value}).encode()
    (path / "model.json").write_bytes(content)
    seal(path)
    with pytest.raises(CheckpointError):
        checkpoint.load(path)


def seal(path: Path) -> None:
    """Make the manifest agree with files that were changed by hand."""
    manifest = path / "MANIFEST.json"
    files = json.loads(manifest.read_text())["files"]
    for name in files:
        data = (path / name).read_bytes()
        files[name] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    manifest.write_bytes(sealed.as_json({"format": sealed.FORMAT, "files": files}))


def test_a_later_format_is_not_guessed_at(tmp_path: Path) -> None:
    path = checkpoint.save(tmp_path, 1, small(), SPEC)
    manifest = path / "MANIFEST.json"
    manifest.write_text(manifest.read_text().replace('"format": 1', '"format": 2'))
    with pytest.raises(CheckpointError, match="checkpoint format 2; this w2vtool reads 1"):
        checkpoint.load(path)


def test_the_rules_of_spelling_travel_and_older_checkpoints_kept_punctuation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = Spec("ctc", toys.TINY, toys.TOKENS, "lower", "drop", "space")
    checkpoint.save(tmp_path / "new", 1, spec.build(), spec)
    assert checkpoint.load(tmp_path / "new").spec.rules == Rules("lower", "drop", "space")
    complete = Spec.to_json

    def older(spec: Spec) -> dict[str, Any]:
        return {k: v for k, v in complete(spec).items() if k not in ("punctuation", "apostrophes")}

    monkeypatch.setattr(Spec, "to_json", older)
    checkpoint.save(tmp_path / "old", 1, spec.build(), spec)
    assert checkpoint.load(tmp_path / "old").spec.rules == Rules("lower", "keep", "keep")
    strange = Spec("ctc", toys.TINY, toys.TOKENS, "title")
    checkpoint.save(tmp_path / "strange", 1, strange.build(), strange)
    with pytest.raises(CheckpointError, match="unknown case of texts 'title'"):
        checkpoint.load(tmp_path / "strange")
