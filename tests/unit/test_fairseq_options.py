"""fairseq's options: sizes of its recipes, and strings that it runs but we only read."""

from __future__ import annotations

import builtins
from typing import Any

import pytest

from w2vtool.architecture import Architecture, ModelConfig
from w2vtool.errors import CheckpointError
from w2vtool.interop import fairseq_options


@pytest.mark.parametrize(
    ("text", "layers"),
    [
        ("[(512,10,5)]+[(512,3,2)]*4+[(512,2,2)]*2", ModelConfig().conv_layers),
        (
            "[(512, 10, 5)] + [(512, 3, 2)] * 4 + [(512,2,2)] + [(512,2,2)]",
            ModelConfig().conv_layers,
        ),
        (" [(8, 10, 5), (8, 3, 2)] ", ((8, 10, 5), (8, 3, 2))),
        ("((8, 10, 5),) * 2", ((8, 10, 5), (8, 10, 5))),
        ("[[8, 10, 5], [8, 3, 2],]", ((8, 10, 5), (8, 3, 2))),
    ],
)
def test_the_usual_convolution_strings_are_read(text: str, layers: Any) -> None:
    assert fairseq_options.conv_layers(text, "") == layers


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os').system('echo run > PROOF')",
        "[__import__('os').system('echo run > PROOF')]",
        "[(512, 10, 5)] * (lambda: 2)()",
        "[(512, 10, 5)] + open('PROOF', 'w')",
        "[(x, 10, 5) for x in [512]]",
        "[(512, 10, 5)] * 10**9",
        "[(512, 10, 5)] * 101",
        "[(512, 10, 5)] * 0",
        "(([(1, 1, 1)] * 90) * 90) * 90",
        "[(512, 10, 5)] +",
        "+ [(512, 10, 5)]",
        "[(512, 10)]",
        "[512, 10, 5]",
        "512",
        "[('a', 10, 5)]",
        "[(-1, 10, 5)]",
        "",
        "[(512, 10, 5)",
        "[" * 5_000,
        "-" * 100_000 + "1",
    ],
)
def test_a_convolution_string_that_is_no_list_of_layers_is_refused_and_not_run(
    text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("eval", "exec", "compile"):
        monkeypatch.setattr(builtins, name, None)
    with pytest.raises(CheckpointError, match="conv_feature_layers cannot be read") as caught:
        fairseq_options.conv_layers(text, "model.pt")
    monkeypatch.undo()
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize("name", ["base", "large", "large-lv60k"])
def test_the_named_architectures_are_those_of_fairseqs_recipes(name: str) -> None:
    sizes = ModelConfig.model_validate({"architecture": name}).sizes()
    large = {
        "encoder_layers": 24,
        "encoder_embed_dim": 1024,
        "encoder_ffn_embed_dim": 4096,
        "encoder_attention_heads": 16,
        "final_dim": 768,
    }
    layer_norm = {"extractor_mode": "layer_norm", "layer_norm_first": True, "conv_bias": True}
    settings: dict[str, Any] = {
        "base": {"final_dim": 256},
        "large": large,
        "large-lv60k": large | layer_norm,
    }[name]
    found = Architecture(**fairseq_options.sizes(settings, ""), normalize=name == "large-lv60k")
    assert found == sizes
    again = fairseq_options.sizes(fairseq_options.from_architecture(sizes), "")
    assert Architecture(**again, normalize=sizes.normalize) == sizes


@pytest.mark.parametrize(
    ("width", "layers", "heads", "final"), [(1024, 24, 16, 768), (1280, 48, 16, 1024)]
)
def test_xlsr_and_mms_have_their_sizes(width: int, layers: int, heads: int, final: int) -> None:
    """As in xlsr_53_56k.pt, XLS-R 300M and 1B, and MMS 300M and 1B."""
    options = {
        "_name": "wav2vec2",
        "extractor_mode": "layer_norm",
        "encoder_layers": layers,
        "encoder_embed_dim": width,
        "encoder_ffn_embed_dim": 4 * width,
        "encoder_attention_heads": heads,
        "layer_norm_first": True,
        "conv_feature_layers": "[(512, 10, 5)] + [(512, 3, 2)] * 4 + [(512,2,2)] + [(512,2,2)]",
        "conv_bias": True,
        "final_dim": final,
        "adp_num": -1,
        "latent_dim": 0,
        "quantize_targets": True,
    }
    fairseq_options.refuse(options, "pretrain", "")
    found = Architecture(**fairseq_options.sizes(options, ""), normalize=True)
    large = ModelConfig.model_validate({"architecture": "large-lv60k"}).sizes()
    sizes = {"width": width, "layers": layers, "heads": heads, "ffn_width": 4 * width}
    assert found == large.model_copy(update={**sizes, "final_width": final})
