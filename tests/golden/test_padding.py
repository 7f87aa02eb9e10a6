"""Why group-norm models are not padded: how much it would change, at BASE's full size."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch
import toys
from torch import nn

from w2vtool.architecture import Architecture
from w2vtool.interop.selfcheck import sound
from w2vtool.model.encoder import Wav2Vec2

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]


def moved_by_padding(sizes: Architecture) -> float:
    """How much the frames of a second change when it is padded to two, relative to their norm."""
    torch.manual_seed(0)
    model = Wav2Vec2(sizes).eval()
    short, long = sound(), torch.cat([sound().flip(0), sound()])
    batch_BS = nn.utils.rnn.pad_sequence([short, long], batch_first=True)
    with torch.no_grad():
        alone_TD = model(short[None]).x_BTD[0]
        padded_TD = model(batch_BS, torch.tensor([len(short), len(long)])).x_BTD[0]
    padded_TD = padded_TD[: len(alone_TD)]
    return float((padded_TD - alone_TD).norm() / alone_TD.norm())


def test_padding_changes_what_a_group_norm_gives_and_nothing_with_a_layer_norm(
    record_property: Any,
) -> None:
    base = Architecture()
    group = moved_by_padding(base)
    layer = moved_by_padding(base.model_copy(update={**toys.LV60K, "normalize": False}))
    record_property("group norm", group)
    record_property("layer norm", layer)
    sys.stdout.write(f"padding moves the output by {group:.0%} (group), {layer:.0e} (layer)\n")
    assert group > 0.1
    assert layer < 1e-4
