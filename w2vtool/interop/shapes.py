"""What the shapes of a state dict say about its network, for files that come without settings.

Goes in: foreign weights. Goes out: fields of an ``Architecture``, and a warning about those that
are assumed. Strides, attention heads, the place of the norms and the normalisation of the waveform
leave no trace in shapes: they are those of the published models of the same sizes, or asked for.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError
from torch import Tensor

from w2vtool.architecture import Architecture
from w2vtool.errors import CheckpointError
from w2vtool.interop.names import Hints, Toolkit, names_of

MAX_BLOCKS = 256  # the deepest published network has 48
MAX_CONVS = 100
MAX_WIDTH = 2**16
_OF_PYDANTIC = "Value error, "  # before the text of our own errors
# Source: BASE; LARGE, XLSR and XLS-R 300M; XLS-R 1B and MMS 1B; XLS-R 2B.
HEADS = {768: 12, 1024: 16, 1280: 16, 1920: 16}
STRIDES = {(10, 3, 3, 3, 3, 2, 2): (5, 2, 2, 2, 2, 2, 2)}  # of every published model
# (norm of the feature encoder, bias of its convolutions) → pre-LN blocks
_NORM_FIRST = {("group", False): False, ("layer", True): True}


def measured(weights: Mapping[str, Tensor], toolkit: Toolkit, kind: str) -> dict[str, Any]:
    """The fields of an ``Architecture`` that these shapes settle; others are absent."""

    def shape(ours: str, norm: str = "group") -> tuple[int, ...]:
        for name in names_of(ours, toolkit, kind, norm):
            for spelled in (name, name.replace("parametrizations.weight.original1", "weight_v")):
                if spelled in weights:
                    return tuple(weights[spelled].shape)
        return ()

    convs = [shape(f"wav2vec2.feature_encoder.layers.{i}.conv.weight") for i in range(MAX_CONVS)]
    ups = [shape(f"wav2vec2.context.blocks.{i}.up.weight") for i in range(MAX_BLOCKS)]
    sizes: dict[str, Any] = {
        "extractor_norm": "layer"
        if shape("wav2vec2.feature_encoder.layers.1.norm.weight", "layer")
        else "group",
        "conv_bias": bool(shape("wav2vec2.feature_encoder.layers.0.conv.bias")),
        "layers": max((i + 1 for i, up in enumerate(ups) if up), default=0),
    }
    kernels = tuple(conv[2] for conv in convs if len(conv) == 3)
    if kernels in STRIDES:
        channels = (conv[0] for conv in convs if len(conv) == 3)
        sizes["conv_layers"] = tuple(zip(channels, kernels, STRIDES[kernels], strict=True))
    if any(ups):
        sizes["ffn_width"] = next(up[0] for up in ups if up)
    if norm := shape("wav2vec2.context.norm.weight"):
        sizes["width"] = norm[0]
    taps = shape("wav2vec2.context.positions.weight_v")  # D, D / groups, kernel
    if len(taps) == 3 and taps[1]:
        sizes |= {"position_kernel": taps[2], "position_groups": taps[0] // taps[1]}
    if final := shape("project_context.weight"):
        sizes["final_width"] = final[0]
    codes, mix = shape("quantizer.codebook"), shape("project_targets.weight")
    if len(codes) == 3 and len(mix) == 2 and 0 < codes[2] <= mix[1]:
        groups = mix[1] // codes[2]
        sizes |= {"codebook_groups": groups, "codebook_entries": codes[1] // groups}
    return sizes


def complete(
    sizes: Mapping[str, Any], hints: Hints, where: str
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """``sizes`` with heads and place of the norms, and a warning about what is assumed of it.

    Raises CheckpointError for all that neither the shapes, the hints nor the published models say.
    """
    width, style = sizes.get("width"), (sizes.get("extractor_norm"), sizes.get("conv_bias"))
    unknown, ask, assumed = [], [], []
    heads, norm_first = hints.heads, hints.norm_first
    if heads is None:
        heads = HEADS.get(width or 0)
        assumed.append(f"{heads} attention heads")
        if heads is None:
            unknown.append(f"the number of attention heads of a network that is {width} wide")
            ask.append("--heads N")
    if norm_first is None:
        norm_first = _NORM_FIRST.get(style)  # type: ignore[arg-type]
        assumed.append("norms before each sublayer" if norm_first else "norms after each sublayer")
        if norm_first is None:
            bias = "with" if style[1] else "without"
            unknown.append(f"the place of the norms ({style[0]} norm, convolutions {bias} bias)")
            ask.append("--norm-first or --no-norm-first")
    if "conv_layers" not in sizes:
        unknown.append("the strides of the convolutions, which are not those of published models")
    if unknown:
        raise CheckpointError(
            f"the weights alone do not say: {'; '.join(unknown)}",
            where=where,
            hint=f"say it: {', '.join(ask)}" if ask else "",
        )
    text = f"not in the file, so as in published models of these sizes: {', '.join(assumed)}"
    return {**sizes, "heads": heads, "norm_first": norm_first}, (text,) if assumed else ()


def architecture(sizes: Mapping[str, Any], where: str) -> Architecture:
    """The sizes as an ``Architecture``. Raises CheckpointError that names all that do not fit."""
    try:
        found = Architecture(**sizes)
    except ValidationError as exc:
        wrong = unfit(exc)
    else:
        numbers = [(name, getattr(found, name)) for name in Architecture.model_fields]
        numbers += [
            (f"conv_layers.{i}", n) for i, layer in enumerate(found.conv_layers) for n in layer
        ]
        numbers.append(("convolutions", len(found.conv_layers)))
        limits = {"layers": MAX_BLOCKS, "convolutions": MAX_CONVS}
        wrong = [
            f"{name} is {value}"
            for name, value in numbers
            if type(value) is int and not 1 <= value <= limits.get(name, MAX_WIDTH)
        ]
    if wrong:
        raise CheckpointError(
            f"the sizes make no wav2vec 2.0 network: {'; '.join(wrong)}", where=where
        )
    return found


def unfit(error: ValidationError) -> list[str]:
    """What keeps sizes from being an ``Architecture``, a phrase each."""
    return [
        ": ".join(filter(None, (".".join(map(str, e["loc"])), e["msg"].removeprefix(_OF_PYDANTIC))))
        for e in error.errors()
    ]


def normalization(
    found: bool | None, hints: Hints, extractor_norm: str
) -> tuple[bool, tuple[str, ...]]:
    """Whether waveforms are normalised, and a warning where that is assumed or unusual.

    Source: fairseq#4687: models with group norm were trained without, with layer norm with it.
    """
    usual = extractor_norm == "layer"
    value = found if hints.normalize is None else hints.normalize
    if value is None:
        does = "are" if usual else "are not"
        return usual, (
            f"not in the file, so as in published models with {extractor_norm} norm: waveforms "
            f"{does} normalised",
        )
    if value == usual:
        return value, ()
    return value, (
        f"normalize is {str(value).lower()} in a model with {extractor_norm} norm, where published "
        f"models have {str(usual).lower()} (fairseq#4687); results are poor if it is not what the "
        "model was trained with",
    )
