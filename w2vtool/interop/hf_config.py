"""``config.json`` of Hugging Face's wav2vec 2.0 models: sizes by our names, and back.

Goes in: the object in the file, or a ``Spec``. Goes out: an ``Architecture``, or the object. What
would make another network of the same weights is refused by name.

Source: transformers ``Wav2Vec2Config``, whose defaults stand in for keys that a file does not have.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from w2vtool.architecture import Architecture
from w2vtool.checkpoint import Spec
from w2vtool.errors import CheckpointError
from w2vtool.interop.hf_vocabulary import special_rows
from w2vtool.interop.names import Hints, agreed
from w2vtool.interop.shapes import MAX_BLOCKS, unfit
from w2vtool.model.encoder import NORM_EPS

CLASSES = {
    "pretrain": "Wav2Vec2ForPreTraining",
    "ctc": "Wav2Vec2ForCTC",
    "backbone": "Wav2Vec2Model",
}
# what the sizes are called there; transformers' defaults where a file does not say
_DEFAULTS: dict[str, Any] = {
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "hidden_act": "gelu",
    "feat_extract_activation": "gelu",
    "layer_norm_eps": 1e-5,
    "feat_extract_norm": "group",
    "conv_dim": [512] * 7,
    "conv_stride": [5, 2, 2, 2, 2, 2, 2],
    "conv_kernel": [10, 3, 3, 3, 3, 2, 2],
    "conv_bias": False,
    "num_conv_pos_embeddings": 128,
    "num_conv_pos_embedding_groups": 16,
    "do_stable_layer_norm": False,
    "num_codevectors_per_group": 320,
    "num_codevector_groups": 2,
    "codevector_dim": 256,
    "proj_codevector_dim": 256,
    "add_adapter": False,
    "adapter_attn_dim": None,
}
# how it is trained there: transformers' defaults, which are fairseq's for fine-tuning. With
# mask_time_prob 0 and mask_feature_prob 0 the mask embedding would be dropped when it is loaded.
_TRAINING: dict[str, Any] = {
    "hidden_dropout": 0.1,
    "activation_dropout": 0.1,
    "attention_dropout": 0.1,
    "feat_proj_dropout": 0.0,
    "feat_quantizer_dropout": 0.0,
    "final_dropout": 0.1,
    "layerdrop": 0.1,
    "initializer_range": 0.02,
    "apply_spec_augment": True,
    "mask_time_prob": 0.05,
    "mask_time_length": 10,
    "mask_time_min_masks": 2,
    "mask_feature_prob": 0.0,
    "mask_feature_length": 10,
    "mask_feature_min_masks": 0,
    "contrastive_logits_temperature": 0.1,
    "num_negatives": 100,
    "diversity_loss_weight": 0.1,
    "ctc_loss_reduction": "sum",
    "ctc_zero_infinity": False,
    "use_weighted_layer_sum": False,
}


def refuse_other_networks(config: Mapping[str, Any], where: str) -> None:
    """Raise CheckpointError for options under which the same weights are another function."""
    given = {**_DEFAULTS, **config}
    problems = []
    if (kind := config.get("model_type", "wav2vec2")) != "wav2vec2":
        problems.append(f"model_type is {kind!r}, not 'wav2vec2'")
    problems += [
        f"{key} is {given[key]!r}, only 'gelu' is built"
        for key in ("hidden_act", "feat_extract_activation")
        if given[key] != "gelu"
    ]
    if given["layer_norm_eps"] != NORM_EPS:
        problems.append(f"layer_norm_eps is {given['layer_norm_eps']!r}, only {NORM_EPS} is built")
    if given["feat_extract_norm"] not in ("group", "layer"):
        problems.append(
            f"feat_extract_norm is {given['feat_extract_norm']!r}, not 'group' or 'layer'"
        )
    if given["add_adapter"]:
        problems.append("add_adapter is true: convolutions after the Transformer have no place")
    if given["adapter_attn_dim"] is not None:
        problems.append(
            f"adapter_attn_dim is {given['adapter_attn_dim']!r}: MMS with language adapters"
        )
    if config.get("quantization_config"):
        problems.append("quantization_config: quantized weights are no parameters of ours")
    if isinstance(given["num_hidden_layers"], int) and given["num_hidden_layers"] > MAX_BLOCKS:
        problems.append(f"num_hidden_layers is {given['num_hidden_layers']}, over {MAX_BLOCKS}")
    convolutions = [given[key] for key in ("conv_dim", "conv_kernel", "conv_stride")]
    if not all(isinstance(values, list) and _sizes(values) for values in convolutions):
        problems.append("conv_dim, conv_kernel and conv_stride must be lists of whole numbers > 0")
    elif len({len(values) for values in convolutions}) > 1:
        lengths = ", ".join(str(len(values)) for values in convolutions)
        problems.append(f"conv_dim, conv_kernel and conv_stride have {lengths} entries")
    if problems:
        raise CheckpointError("\n  ".join(["not a network of ours", *problems]), where=where)


def _sizes(values: list[object]) -> bool:
    return bool(values) and all(type(value) is int and value > 0 for value in values)


def architecture_of(
    config: Mapping[str, Any], kind: str, normalize: bool, hints: Hints, where: str
) -> Architecture:
    """Sizes by our names.

    Raises CheckpointError for sizes that make no network, and for hints that say other ones.
    """
    given = {**_DEFAULTS, **config}
    code, shared = given["codevector_dim"], given["proj_codevector_dim"]
    if kind == "pretrain" and code != shared:
        raise CheckpointError(
            f"codevector_dim is {code}, proj_codevector_dim is {shared}: w2vtool has one width for"
            " codewords and for the space in which they are compared",
            where=where,
        )
    agreed(config.get("num_attention_heads"), config.get("do_stable_layer_norm"), hints, where)
    norm_first = given["do_stable_layer_norm"] if hints.norm_first is None else hints.norm_first
    try:
        return Architecture(
            conv_layers=tuple(
                zip(given["conv_dim"], given["conv_kernel"], given["conv_stride"], strict=True)
            ),
            extractor_norm=given["feat_extract_norm"],
            conv_bias=given["conv_bias"],
            width=given["hidden_size"],
            layers=given["num_hidden_layers"],
            heads=hints.heads or given["num_attention_heads"],
            ffn_width=given["intermediate_size"],
            norm_first=norm_first,
            position_kernel=given["num_conv_pos_embeddings"],
            position_groups=given["num_conv_pos_embedding_groups"],
            codebook_groups=given["num_codevector_groups"],
            codebook_entries=given["num_codevectors_per_group"],
            final_width=shared,
            normalize=normalize,
        )
    except ValidationError as exc:
        what = "\n  ".join(["the sizes make no wav2vec 2.0 network", *unfit(exc)])
        raise CheckpointError(what, where=where) from exc


def config_of(spec: Spec) -> dict[str, Any]:
    """``config.json``, every key that the classes read."""
    sizes = spec.architecture
    channels, kernels, strides = zip(*sizes.conv_layers, strict=True)
    rows: dict[str, Any] = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    if spec.tokens is not None:
        rows = {"vocab_size": len(spec.tokens), **special_rows(spec.tokens)}
    return {
        "architectures": [CLASSES[spec.kind]],
        "model_type": "wav2vec2",
        **_DEFAULTS,
        "hidden_size": sizes.width,
        "output_hidden_size": sizes.width,
        "num_hidden_layers": sizes.layers,
        "num_attention_heads": sizes.heads,
        "intermediate_size": sizes.ffn_width,
        "feat_extract_norm": sizes.extractor_norm,
        "num_feat_extract_layers": len(channels),
        "conv_dim": channels,
        "conv_kernel": kernels,
        "conv_stride": strides,
        "conv_bias": sizes.conv_bias,
        "num_conv_pos_embeddings": sizes.position_kernel,
        "num_conv_pos_embedding_groups": sizes.position_groups,
        "do_stable_layer_norm": sizes.norm_first,
        "num_codevectors_per_group": sizes.codebook_entries,
        "num_codevector_groups": sizes.codebook_groups,
        "codevector_dim": sizes.final_width,
        "proj_codevector_dim": sizes.final_width,
        **_TRAINING,
        **rows,
    }
