"""Set-up of training: fresh weights and the CTC head."""

from __future__ import annotations

import torch

from w2vtool.checkpoint import Spec
from w2vtool.model.heads import CtcModel
from w2vtool.schema import Dropouts, ModelConfig
from w2vtool.text import Tokens
from w2vtool.training import build

TINY = ModelConfig(architecture="small", width=32, layers=1, ffn_width=32).sizes()


def test_blank_bias_is_for_a_fresh_head_only() -> None:
    spec = Spec("ctc", TINY, Tokens())
    fresh = build(spec, {}, Dropouts(), 1, blank_bias=3.0)
    assert isinstance(fresh, CtcModel)
    assert fresh.head.bias[0] == 3.0
    assert (fresh.head.bias[1:] == 0).all()
    kept = build(spec, fresh.state_dict(), Dropouts(), 2, blank_bias=5.0)
    assert torch.equal(kept.head.bias, fresh.head.bias)


def test_the_same_seed_gives_the_same_fresh_weights_and_another_one_others() -> None:
    spec = Spec("pretrain", TINY)
    one, same, other = (build(spec, {}, Dropouts(), seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one["project_targets.weight"], other["project_targets.weight"])
