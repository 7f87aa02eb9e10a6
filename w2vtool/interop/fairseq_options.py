"""fairseq's options of a wav2vec 2.0 network, and the ``Architecture`` that they stand for.

Goes in: options as plain data. Goes out: sizes, or an error that names all options which make
another network; and options that make ours again. Why one by one: fairseq's class of this name
makes many networks, and some of the others would load here and give other numbers.

Source: fairseq ``models/wav2vec/wav2vec2.py``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from w2vtool.architecture import Architecture, ConvLayer
from w2vtool.checkpoint import Spec
from w2vtool.errors import CheckpointError
from w2vtool.interop.shapes import MAX_CONVS

_EXTRACTORS = {"default": "group", "layer_norm": "layer"}
_ONLY = {  # the value of an option that makes our network
    "layer_type": "transformer",
    "activation_fn": "gelu",
    "pos_conv_depth": 1,
    "conv_pos_batch_norm": False,
    "quantize_input": False,
    "crop_seq_to_multiple": 1,
}
_ONLY_IN_PRETRAINING = {  # a fine-tuned model has none of these parts any more
    "quantizer_depth": 1,
    "same_quantizer": False,
    "target_glu": False,
    "quantize_targets": True,
}
_BASE_CONVS = "[(512, 10, 5)] + [(512, 3, 2)] * 4 + [(512, 2, 2)] * 2"
_LAYER = r"[(\[](\d{1,6}),(\d{1,6}),(\d{1,6}),?[)\]]"
_LAYERS = rf"[(\[]{_LAYER}(?:,{_LAYER})*,?[)\]]"
_TERM = re.compile(rf"(?P<layers>{_LAYERS})(?:\*(?P<times>\d{{1,6}}))?(?:\+(?=.)|$)")


def refuse(options: Mapping[str, Any], kind: str, where: str) -> None:
    """Raise CheckpointError for all options that make another network than ours."""
    only, wrong = dict(_ONLY), []
    if kind == "pretrain":
        only |= _ONLY_IN_PRETRAINING
        latent, final = options.get("latent_dim", 0), _final_width(options)
        if latent != final and not (isinstance(latent, int) and latent <= 0):
            wrong.append(f"latent_dim is {latent!r}, not {final!r} as the final width")
    for key, value in only.items():
        if options.get(key, value) != value:
            wrong.append(f"{key} is {options[key]!r}, not {value!r}")
    if (mode := str(options.get("extractor_mode", "default"))) not in _EXTRACTORS:
        wrong.append(f"extractor_mode is {mode!r}, not {' or '.join(map(repr, _EXTRACTORS))}")
    if wrong:
        raise CheckpointError(
            "\n  ".join(["its options make another network than wav2vec 2.0 here", *wrong]),
            where=where,
        )


def sizes(options: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Fields of an ``Architecture``, with fairseq's defaults for options that are not given.

    They are not checked, and ``normalize`` is not among them: it is an option of the task.
    """
    convs = str(options.get("conv_feature_layers", _BASE_CONVS))
    return {
        "conv_layers": conv_layers(convs, where),
        "extractor_norm": _EXTRACTORS.get(str(options.get("extractor_mode", "default"))),
        "conv_bias": options.get("conv_bias", False),
        "width": options.get("encoder_embed_dim", 768),
        "layers": options.get("encoder_layers", 12),
        "heads": options.get("encoder_attention_heads", 12),
        "ffn_width": options.get("encoder_ffn_embed_dim", 3072),
        "norm_first": options.get("layer_norm_first", False),
        "position_kernel": options.get("conv_pos", 128),
        "position_groups": options.get("conv_pos_groups", 16),
        "codebook_groups": options.get("latent_groups", 2),
        "codebook_entries": options.get("latent_vars", 320),
        "final_width": _final_width(options),
    }


def _final_width(options: Mapping[str, Any]) -> Any:
    """``final_dim``, where 0 stands for the width of the network."""
    final = options.get("final_dim", 0)
    return options.get("encoder_embed_dim", 768) if isinstance(final, int) and final <= 0 else final


def conv_layers(text: str, where: str) -> tuple[ConvLayer, ...]:
    """``[(512,10,5)] + [(512,3,2)] * 4``, which fairseq runs through ``eval``, parsed.

    Raises CheckpointError for anything but sums of lists of triples, each times a number or not.
    """
    rest, layers = re.sub(r"\s+", "", text), list[ConvLayer]()
    while rest and (term := _TERM.match(rest)):
        found = [tuple(map(int, layer)) for layer in re.findall(_LAYER, term["layers"])]
        times = int(term["times"] or 1)
        if len(layers) + len(found) * times > MAX_CONVS:
            break
        layers += found * times  # type: ignore[arg-type]
        rest = rest[term.end() :]
    if rest or not layers:
        shown = text if len(text) <= 200 else f"{text[:200]}…"
        raise CheckpointError(
            f"conv_feature_layers cannot be read: {shown!r}",
            where=where,
            hint=f"it must be like '{_BASE_CONVS}', with at most {MAX_CONVS} layers",
        )
    return tuple(layers)


def from_architecture(architecture: Architecture) -> dict[str, Any]:
    """Options of fairseq's ``wav2vec2`` that make this network, and are known since 2020."""
    extractor = next(mode for mode, n in _EXTRACTORS.items() if n == architecture.extractor_norm)
    return {
        "_name": "wav2vec2",
        "extractor_mode": extractor,
        "encoder_layers": architecture.layers,
        "encoder_embed_dim": architecture.width,
        "encoder_ffn_embed_dim": architecture.ffn_width,
        "encoder_attention_heads": architecture.heads,
        "activation_fn": "gelu",
        "layer_norm_first": architecture.norm_first,
        "conv_feature_layers": str([tuple(layer) for layer in architecture.conv_layers]),
        "conv_bias": architecture.conv_bias,
        "conv_pos": architecture.position_kernel,
        "conv_pos_groups": architecture.position_groups,
        "quantize_targets": True,
        "quantize_input": False,
        "same_quantizer": False,
        "target_glu": False,
        "latent_vars": architecture.codebook_entries,
        "latent_groups": architecture.codebook_groups,
        "latent_dim": 0,
        "final_dim": architecture.final_width,
        "feature_grad_mult": _feature_gradient(architecture),
    }


def _feature_gradient(architecture: Architecture) -> float:
    """Factor of the feature encoder's gradient in the recipe of the published model of this style.

    Source: fairseq's recipes: BASE 0.1; LARGE of LibriSpeech 0.03; LARGE of LV-60k, layer norm, 1.
    """
    if architecture.extractor_norm == "layer":
        return 1.0
    return 0.03 if architecture.width > 768 else 0.1


def settings(spec: Spec) -> dict[str, Any]:
    """``cfg`` as fairseq saves it, with the options that loading and training need.

    The weights of diversity loss and feature penalty are those of fairseq's recipes.
    """
    normalize = spec.architecture.normalize
    penalty = 0.0 if spec.architecture.extractor_norm == "layer" else 10.0
    common = {"_name": None, "seed": 1, "fp16": False}
    cfg: dict[str, Any] = {
        "_name": None,
        "common": common,
        "task": {
            "_name": "audio_pretraining",
            "data": ".",
            "sample_rate": 16_000,
            "normalize": normalize,
        },
        "model": from_architecture(spec.architecture),
        "criterion": {"_name": "wav2vec", "infonce": True, "loss_weights": [0.1, penalty]},
    }
    if spec.kind != "ctc":
        return cfg
    return {
        "_name": None,
        "common": common,
        "task": {**cfg["task"], "_name": "audio_finetuning", "labels": "ltr"},
        "model": {
            "_name": "wav2vec_ctc",
            "w2v_path": "",
            "w2v_args": cfg,
            "data": ".",
            "normalize": normalize,
        },
        "criterion": {"_name": "ctc", "zero_infinity": True},
    }
