"""What the network computes in."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from w2vtool.device import inference_precision

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("found", "chosen"),
    [
        ({"avx512_bf16": True}, "bf16"),
        ({"amx_bf16": True, "avx512_bf16": False}, "bf16"),
        ({"avx2": True, "avx512_bf16": False}, "float32"),
        ({}, "float32"),
    ],
)
def test_auto_is_bf16_where_the_cpu_multiplies_in_it(
    found: dict[str, Any], chosen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: found)
    assert inference_precision("auto", CPU) == chosen
    assert inference_precision("float32", CPU) == "float32"
    assert inference_precision("bf16", CPU) == "bf16"
