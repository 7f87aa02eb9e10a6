"""The network in numbers: its sizes, the named ones, and where a training drops what.

Goes in: nothing. Goes out: config models; an ``Architecture`` is stored in every checkpoint.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, Self

from pydantic import model_validator

from w2vtool.schema import Config, knob

ConvLayer = tuple[int, int, int]  # channels, kernel, stride


def _conv_layers(*channels: int) -> tuple[ConvLayer, ...]:
    """Kernels and strides of the paper (320 samples a frame), with any widths."""
    shapes = ((10, 5), (3, 2), (3, 2), (3, 2), (3, 2), (2, 2), (2, 2))
    return tuple((c, k, s) for c, (k, s) in zip(channels, shapes, strict=True))


class Architecture(Config):
    """The sizes of a network; stored in every checkpoint. The defaults are BASE."""

    conv_layers: tuple[ConvLayer, ...] = knob(
        _conv_layers(*[512] * 7),
        "Convolutions of the feature encoder: channels, kernel, stride.",
        source="fairseq conv_feature_layers",
    )
    extractor_norm: Literal["group", "layer"] = knob(
        "group",
        "Norm of the feature encoder: over time after the first convolution, or per frame "
        "after every one.",
        source="fairseq extractor_mode default|layer_norm",
    )
    conv_bias: bool = knob(False, "Whether the convolutions have a bias.", source="fairseq")
    width: int = knob(768, "Width of the context network.", ge=8, source="paper §4.2")
    layers: int = knob(12, "Transformer blocks.", ge=1, source="paper §4.2")
    heads: int = knob(12, "Attention heads.", ge=1, source="fairseq (the paper's text says 8)")
    ffn_width: int = knob(3072, "Width inside the feed-forward layers.", ge=8, source="paper §4.2")
    norm_first: bool = knob(
        False, "Pre-LN instead of post-LN blocks.", source="fairseq layer_norm_first"
    )
    position_kernel: int = knob(
        128, "Taps of the positional convolution.", unit="frames", ge=1, source="paper §4.2"
    )
    position_groups: int = knob(
        16, "Groups of the positional convolution.", ge=1, source="paper §4.2"
    )
    codebook_groups: int = knob(2, "Groups of the quantizer, G.", ge=1, source="paper §4.2")
    codebook_entries: int = knob(
        320, "Entries in each group of the quantizer, V.", ge=2, source="paper §4.2"
    )
    final_width: int = knob(
        256,
        "Width of the codewords and of the space in which they are compared.",
        ge=2,
        source="fairseq final_dim",
    )
    normalize: bool = knob(
        False,
        "Bring every utterance to zero mean and unit variance first.",
        source="fairseq normalize: false with group norm, true with layer norm",
    )

    @model_validator(mode="after")
    def _divisible(self) -> Self:
        for key, parts in (("heads", self.heads), ("position_groups", self.position_groups)):
            if self.width % parts:
                raise ValueError(f"width {self.width} cannot be divided into {parts} {key}")
        if self.final_width % self.codebook_groups:
            raise ValueError(
                f"final_width {self.final_width} cannot be divided into "
                f"{self.codebook_groups} codebook_groups"
            )
        return self


_LARGE: dict[str, Any] = {
    "width": 1024,
    "layers": 24,
    "heads": 16,
    "ffn_width": 4096,
    "final_width": 768,
}
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "base": {},
    "large": _LARGE,
    "large-lv60k": {
        **_LARGE,
        "extractor_norm": "layer",
        "conv_bias": True,
        "norm_first": True,
        "normalize": True,
    },
    # For CPUs: narrow early convolutions, where most of the time goes. The bias keeps the latents
    # of digital silence away from zero, where LayerNorm would blow them up (docs/small.md).
    "small": {
        "conv_bias": True,
        "norm_first": True,
        "conv_layers": _conv_layers(32, 64, 64, 96, 128, 128, 128),
        "width": 192,
        "layers": 4,
        "heads": 4,
        "ffn_width": 768,
        "position_kernel": 32,
        "position_groups": 16,
        "codebook_entries": 64,
        "final_width": 96,
    },
}


class ModelConfig(Architecture):
    """Which network: a named architecture, and what to change of it."""

    architecture: Literal["base", "large", "large-lv60k", "small"] = knob(
        "base",
        "The named architecture that all other sizes start from.",
        source="paper §4.2",
    )
    init: Path | None = knob(
        None, "Checkpoint to start from; the architecture is then the checkpoint's."
    )

    @model_validator(mode="before")
    @classmethod
    def _start_from_name(cls, given: Any) -> Any:
        if isinstance(given, dict):
            return {**ARCHITECTURES.get(str(given.get("architecture", "base")), {}), **given}
        return given

    def sizes(self) -> Architecture:
        """The architecture alone, as a checkpoint stores it."""
        return Architecture(**self.model_dump(include=set(Architecture.model_fields)))


class Dropouts(Config):
    """Where activations, layers or gradients are dropped in training."""

    hidden: float = knob(0.0, "After attention and feed-forward.", ge=0, lt=1, source="dropout")
    attention: float = knob(0.0, "Of attention weights.", ge=0, lt=1, source="attention_dropout")
    activation: float = knob(
        0.0, "Inside the feed-forward layers.", ge=0, lt=1, source="activation_dropout"
    )
    input: float = knob(0.0, "Of the projected latents.", ge=0, lt=1, source="dropout_input")
    features: float = knob(
        0.0, "Of the latents that the quantizer sees.", ge=0, lt=1, source="dropout_features"
    )
    layer_drop: float = knob(
        0.0, "Chance to skip a Transformer block.", ge=0, lt=1, source="encoder_layerdrop"
    )
    final: float = knob(0.0, "Before the CTC head.", ge=0, lt=1, source="final_dropout")
