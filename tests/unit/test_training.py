"""Set-up of training: fresh weights, the CTC head, and where the first weights come from."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import toys

from w2vtool import checkpoint
from w2vtool.architecture import Dropouts, ModelConfig
from w2vtool.checkpoint import Spec
from w2vtool.errors import CheckpointError, ConfigError
from w2vtool.manifest import Manifest
from w2vtool.model.heads import CtcModel
from w2vtool.schema import TextConfig
from w2vtool.tokens import Tokens
from w2vtool.training import Start, build, fresh_parts, initial, tokens

TINY = ModelConfig(architecture="small", width=32, layers=1, ffn_width=32).sizes()
OTHER = Tokens((*toys.TOKENS.symbols, "Ä"))


def test_blank_bias_is_for_a_fresh_head_only() -> None:
    spec = Spec("ctc", TINY, Tokens())
    fresh = build(Start(spec, {}, []), Dropouts(), 1, blank_bias=3.0)
    assert isinstance(fresh, CtcModel)
    assert fresh.head.bias[0] == 3.0
    assert (fresh.head.bias[1:] == 0).all()
    kept = build(Start(spec, fresh.state_dict(), []), Dropouts(), 2, blank_bias=5.0)
    assert torch.equal(kept.head.bias, fresh.head.bias)


def test_the_same_seed_gives_the_same_fresh_weights_and_another_one_others() -> None:
    start = Start(Spec("pretrain", TINY), {}, [])
    one, same, other = (build(start, Dropouts(), seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one["project_targets.weight"], other["project_targets.weight"])


def saved(folder: Path, kind: str) -> ModelConfig:
    return ModelConfig(init=toys.save(folder / kind, kind))


@pytest.mark.parametrize(
    ("kind", "of", "fresh"),
    [
        ("ctc", "pretrain", ["head"]),
        ("ctc", "backbone", ["head"]),
        ("ctc", "ctc", []),
        ("pretrain", "pretrain", []),
        ("pretrain", "backbone", ["project_context", "project_targets", "quantizer"]),
        ("pretrain", "ctc", ["project_context", "project_targets", "quantizer"]),
    ],
)
def test_what_fits_is_taken_over_and_the_rest_is_fresh(
    tmp_path: Path, kind: str, of: str, fresh: list[str]
) -> None:
    config = saved(tmp_path, of)
    start = initial(config, kind, tokens=toys.TOKENS if kind == "ctc" else None)
    assert start.spec.architecture == toys.TINY
    model = build(start, Dropouts(), seed=5)
    assert fresh_parts(model, start) == fresh
    weights = checkpoint.load(config.init or Path()).weights
    taken = [name for name in model.state_dict() if name.partition(".")[0] not in fresh]
    assert taken
    assert all(torch.equal(model.state_dict()[name], weights[name]) for name in taken)


def test_another_vocabulary_stops_and_shows_both_unless_the_head_is_to_be_fresh(
    tmp_path: Path,
) -> None:
    config = saved(tmp_path, "ctc")
    with pytest.raises(CheckpointError) as caught:
        initial(config, "ctc", tokens=OTHER)
    assert f"checkpoint: {' '.join(toys.TOKENS.symbols)}\n" in str(caught.value)
    assert f"this run:   {' '.join(OTHER.symbols)}" in str(caught.value)
    assert "fresh_head=true" in caught.value.hint
    start = initial(config, "ctc", tokens=OTHER, fresh_head=True)
    model = build(start, Dropouts(), seed=5)
    assert fresh_parts(model, start) == ["head"]
    assert isinstance(model, CtcModel)
    assert len(model.head.bias) == len(OTHER)


def test_a_fresh_head_is_drawn_anew_also_where_the_old_one_would_fit(tmp_path: Path) -> None:
    config = saved(tmp_path, "ctc")
    start = initial(config, "ctc", tokens=toys.TOKENS, fresh_head=True)
    assert not any(name.startswith("head.") for name in start.weights)


def test_the_history_of_the_weights_goes_on(tmp_path: Path) -> None:
    torch.manual_seed(0)
    spec = Spec("pretrain", toys.TINY)
    imported = {"task": "import", "toolkit": "fairseq", "updates": 400_000}
    model = spec.build()
    checkpoint.write(tmp_path / "taken", model.state_dict(), spec, {"history": [imported]})
    first = initial(ModelConfig(init=tmp_path / "taken"), "ctc", tokens=toys.TOKENS)
    assert first.history == [imported]
    trained = {"history": first.history, "seconds": 7200.0, "manifest": "abc"}
    folder = checkpoint.save(tmp_path / "checkpoints", 9, model, spec, state=trained)
    second = initial(ModelConfig(init=tmp_path / "checkpoints"), "pretrain")
    own = {
        "task": "pretrain",
        "updates": 9,
        "audio_hours": 2.0,
        "manifest": "abc",
        "weights": checkpoint.fingerprint(folder),
    }
    assert second.history == [imported, own]


def test_the_tokens_of_the_checkpoint_can_be_kept_whatever_they_are(tmp_path: Path) -> None:
    train = Manifest(tmp_path / "train.jsonl", [], "")
    text = TextConfig(tokens="checkpoint")
    init = toys.save(tmp_path / "ctc", "ctc", OTHER)
    assert tokens(text, train, init) == OTHER
    for none in (None, toys.save(tmp_path / "pretrain", "pretrain")):
        with pytest.raises(ConfigError, match=r"model\.init is not a CTC model"):
            tokens(text, train, none)
