"""The self-check passes models that work and refuses those that cannot."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import toys

from w2vtool.checkpoint import Spec
from w2vtool.errors import CheckpointError
from w2vtool.interop.selfcheck import check, sound

pytestmark = pytest.mark.usefixtures("one_thread")
LAYER = toys.TINY.model_copy(
    update={"extractor_norm": "layer", "norm_first": True, "normalize": True, "conv_bias": True}
)


def model(kind: str = "pretrain", sizes: object = toys.TINY) -> Any:
    torch.manual_seed(3)
    return Spec(kind, sizes, toys.TOKENS if kind == "ctc" else None).build()  # type: ignore[arg-type]


def test_the_sound_is_always_the_same_and_neither_silent_nor_clipped() -> None:
    assert torch.equal(sound(), sound())
    assert sound().dtype == torch.float32
    assert 0.05 < sound().std() < 0.3
    assert sound().abs().max() < 1


@pytest.mark.parametrize("sizes", [toys.TINY, LAYER], ids=["group", "layer"])
@pytest.mark.parametrize(
    ("kind", "heads"),
    [("pretrain", {"targets", "predictions"}), ("ctc", {"logits"}), ("backbone", set())],
)
def test_a_model_that_works_gives_the_loudness_of_every_layer(
    kind: str, heads: set[str], sizes: object
) -> None:
    found = check(model(kind, sizes), "x")
    assert set(found) == {"conv", "0", "1", "2", "final"} | heads
    assert all(math.isfinite(value) and value > 0 for value in found.values())
    assert found == check(model(kind, sizes), "x")


def test_weights_that_are_not_finite_are_named() -> None:
    broken = model()
    with torch.no_grad():
        broken.wav2vec2.context.blocks[1].up.weight[0, 0] = torch.nan
    with pytest.raises(CheckpointError) as caught:
        check(broken, "model.pt")
    assert "wav2vec2.context.blocks.1.up.weight is not finite" in str(caught.value)
    assert "layer 2 is not finite" in str(caught.value)
    assert "layer 1 is not finite" not in str(caught.value)
    assert caught.value.where == "model.pt"


def test_a_dead_layer_is_named() -> None:
    broken = model()
    with torch.no_grad():
        broken.wav2vec2.context.norm.weight.zero_()  # post-LN: the input of the first block
        broken.wav2vec2.context.norm.bias.fill_(1.0)
    with pytest.raises(CheckpointError, match="layer 0 is the same in every frame"):
        check(broken, "model.pt")


def test_a_head_that_always_gives_the_same_is_no_damage() -> None:
    collapsed, ctc = model(), model("ctc")
    with torch.no_grad():
        collapsed.quantizer.weights.weight.zero_()
        collapsed.quantizer.weights.bias.copy_(torch.arange(len(collapsed.quantizer.weights.bias)))
        ctc.head.weight.zero_()
    assert check(collapsed, "x")["targets"] > 0
    assert math.isfinite(check(ctc, "x")["logits"])
    with torch.no_grad():
        ctc.head.bias.fill_(torch.inf)
    with pytest.raises(CheckpointError, match="layer logits is not finite"):
        check(ctc, "x")


def test_numbers_that_depend_on_the_batch_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    broken = model()
    body = type(broken.wav2vec2)
    forward = body.forward

    def louder(self: Any, wave_BS: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        return forward(
            self, wave_BS * torch.linspace(1, 1.5, len(wave_BS))[:, None] ** 2, *args, **kwargs
        )

    monkeypatch.setattr(body, "forward", louder)
    with pytest.raises(CheckpointError, match="a row in a batch differs from the same row alone"):
        check(broken, "x")
