"""Folders of Hugging Face transformers: ``Wav2Vec2Model``, ``…ForPreTraining`` and ``…ForCTC``.

Goes in: a folder with ``config.json`` and weights (safetensors or a pickle, whole or in shards), or
one of our checkpoints. Goes out: a ``Source``, or such a folder for ``from_pretrained``.

Why a projection of ones: transformers has a linear layer between the latents and the Transformer
also where both have the same width, we and fairseq have none there. It is written as the identity,
which changes no number, and taken away again when such a folder is read.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from w2vtool.architecture import Architecture
from w2vtool.checkpoint import Checkpoint, Spec
from w2vtool.errors import CheckpointError
from w2vtool.interop import strangers
from w2vtool.interop.hf_config import CLASSES, architecture_of, config_of, refuse_other_networks
from w2vtool.interop.hf_files import read_json, weights, write_json
from w2vtool.interop.hf_vocabulary import (
    LanguageModelFiles,
    find_vocabulary,
    read_vocabulary,
    write_language_model,
    write_vocabulary,
)
from w2vtool.interop.names import (
    NO_HINTS,
    Hints,
    Source,
    case_of,
    export_state,
    import_state,
    lost,
    vocabulary,
    with_blank,
)
from w2vtool.tokens import Tokens

__all__ = ["LanguageModelFiles", "pad_row", "read", "read_vocabulary", "write"]

SAMPLE_RATE = 16_000
_HEADS = {"pretrain": ("quantizer", "project_q", "project_hid"), "ctc": ("lm_head",)}
_BODY = "wav2vec2."
_PROJECTION = "feature_projection.projection."
# no option of the model: where it came from, and labels of classifiers
_OTHERS = (  # read beside the weights, where they are there
    "config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "vocab.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
)
_NOT_SETTINGS = ("_name_or_path", "auto_map", "id2label", "label2id")


# -- reading ----------------------------------------------------------------------------------


def read(folder: Path, hints: Hints = NO_HINTS) -> Source:
    """A folder of transformers in our terms.

    Raises CheckpointError for damaged or missing files, for another kind of model, and for options
    that make another network than ours, all of them listed.
    """
    config = read_json(folder / "config.json")
    where = str(folder / "config.json")
    name = str(config.get("model_type", "wav2vec2"))
    strangers.refuse((), name, where)
    refuse_other_networks(config, where)
    found, files = weights(folder)
    file = files[0]
    strangers.refuse(found, name, str(file))
    kind = _kind(found, config)
    normalize, warnings = _audio(folder, config, hints)
    architecture = architecture_of(config, kind, normalize, hints, where)
    state, left_out = _of_kind(found, kind, config)
    warnings += _precision(state, file)
    tokens = None
    if kind == "ctc":
        tokens, more = _vocabulary(folder, config, state, hints, file)
        warnings += more
    spec = Spec(kind, architecture, tokens, case_of(tokens) if tokens else "upper")
    _drop_identity(state, architecture, kind)
    ours, fresh = import_state(state, spec, "hf", str(file), may_lack=("wav2vec2.mask_embedding",))
    settings = {key: value for key, value in config.items() if key not in _NOT_SETTINGS}
    form = f"{CLASSES[kind]} folder ({file.name})"
    files += tuple(path for name in _OTHERS if (path := folder / name).is_file())
    history: dict[str, object] = {"settings": settings}
    return Source("hf", form, spec, ours, fresh, left_out, tuple(warnings), history, files)


def pad_row(folder: Path) -> int | None:
    """``pad_token_id`` of a folder of transformers, the row of the CTC blank; None without one."""
    path = folder / "config.json"
    return _pad_row(read_json(path)) if path.is_file() else None


def _pad_row(config: Mapping[str, Any]) -> int | None:
    row = config.get("pad_token_id", 0)  # transformers' default
    return row if type(row) is int else None


def _vocabulary(
    folder: Path,
    config: Mapping[str, Any],
    state: Mapping[str, Tensor],
    hints: Hints,
    file: Path,
) -> tuple[Tokens, tuple[str, ...]]:
    """The tokens that the person gave, else the folder's, and what to say about them."""
    head = state.get("lm_head.weight")
    if head is None or not head.dim():
        raise CheckpointError("no lm_head.weight, which Wav2Vec2ForCTC has", where=str(file))
    blank, warnings = _pad_row(config), tuple[str, ...]()
    try:
        found, warnings = find_vocabulary(folder, len(head), blank)
    except CheckpointError:
        if hints.tokens is None:
            raise
        found = None  # then that of the person is all there is
    if hints.tokens is not None:
        blank = blank if found is None else found.blank
        given, moved = with_blank(hints.tokens, blank, str(folder))
        hints, warnings = hints._replace(tokens=given), warnings + moved
    tokens, differ = vocabulary(found, hints, len(head), str(folder))
    return tokens, warnings + differ


def _audio(folder: Path, config: Mapping[str, Any], hints: Hints) -> tuple[bool, list[str]]:
    """Whether audio is normalised, and where transformers and we treat it differently."""
    found, path = _extractor(folder)
    per_frame = config.get("feat_extract_norm", "group") == "layer"
    style = "layer" if per_frame else "group"
    warnings = []
    if found is None:
        normalize = per_frame
        if hints.normalize is None:
            warnings.append(
                "no preprocessor_config.json or processor_config.json: normalize is taken as"
                f" {str(per_frame).lower()}, as models with {style} norm were trained"
            )
    else:
        if (rate := found.get("sampling_rate", SAMPLE_RATE)) != SAMPLE_RATE:
            raise CheckpointError(f"a model for {rate} Hz, w2vtool reads 16 kHz", where=str(path))
        normalize = bool(found.get("do_normalize", True))
        if normalize and not per_frame and hints.normalize is None:
            warnings.append(
                "do_normalize is true with a group norm, as in all folders that were converted from"
                " fairseq, which trained such models without: results are those of transformers;"
                " --no-normalize gives fairseq's, which differ for quiet recordings"
            )
        masked = bool(found.get("return_attention_mask", False))
        if masked and not per_frame:
            warnings.append(
                "return_attention_mask is true with a group norm, whose statistics contain the"
                " padding: here such models run in batches of equal lengths, without padding"
            )
        if per_frame and not masked:
            warnings.append(
                "return_attention_mask is false with a layer norm: transformers' results then"
                " depend on the padding; here padded rows are masked"
            )
    return normalize if hints.normalize is None else hints.normalize, warnings


def _extractor(folder: Path) -> tuple[dict[str, Any] | None, Path]:
    """The settings of ``Wav2Vec2FeatureExtractor``, and their file; none where no file has them.

    A processor of transformers 5 is saved with them in a file of its own, under a name.
    """
    path = folder / "preprocessor_config.json"
    if path.is_file():
        return read_json(path), path
    path = folder / "processor_config.json"
    found = read_json(path).get("feature_extractor") if path.is_file() else None
    return found if isinstance(found, dict) else None, path


def _kind(weights: Iterable[str], config: Mapping[str, Any]) -> str:
    """By the heads that are there, and by the class that the folder says it is."""
    stems = {key.split(".")[0] for key in weights}
    claimed = config.get("architectures")
    for kind in ("ctc", "pretrain"):
        said = isinstance(claimed, list) and CLASSES[kind] in claimed
        if said or stems.issuperset(_HEADS[kind]):
            return kind
    return "backbone"


def _of_kind(
    weights: Mapping[str, Tensor], kind: str, config: Mapping[str, Any]
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """The tensors of body and head; what belongs to other heads is named in the second part."""
    if not any(key.startswith(_BODY) for key in weights):
        return dict(weights), ()
    heads = _HEADS.get(kind, ())
    state, others = {}, dict[str, int]()
    for key, value in weights.items():
        stem = key.split(".")[0]
        if key.startswith(_BODY):
            state[key.removeprefix(_BODY) if kind == "backbone" else key] = value
        elif stem in heads:
            state[key] = value
        else:
            others[stem] = others.get(stem, 0) + 1
    claimed = config.get("architectures")
    name = claimed[0] if isinstance(claimed, list) and claimed else "another class"
    return state, tuple(
        f"{stem} ({count} tensor{'s' * (count > 1)}): of {name}, no part of {CLASSES[kind]}"
        for stem, count in others.items()
    )


def _precision(state: Mapping[str, Tensor], file: Path) -> list[str]:
    """What is said about weights that are not float32. Raises CheckpointError for whole numbers."""
    types = {str(value.dtype).removeprefix("torch.") for value in state.values()}
    strange = [key for key, value in state.items() if not value.is_floating_point()]
    if strange:
        raise CheckpointError(
            f"{len(strange)} tensors hold no real numbers, the first is {strange[0]}"
            f" ({state[strange[0]].dtype}): quantized weights cannot be read",
            where=str(file),
        )
    names = " and ".join(sorted(types - {"float32"}))
    return [f"the weights are {names} in the file, float32 here"] if names else []


def _drop_identity(state: dict[str, Tensor], architecture: Architecture, kind: str) -> None:
    """Take away a projection that changes nothing, where we have none."""
    stem = ("" if kind == "backbone" else _BODY) + _PROJECTION
    if architecture.conv_layers[-1][0] != architecture.width or f"{stem}weight" not in state:
        return
    weight, bias = state[f"{stem}weight"], state.get(f"{stem}bias")
    ones = torch.eye(architecture.width, dtype=weight.dtype)
    if bias is not None and torch.equal(weight, ones) and not bias.any():
        del state[f"{stem}weight"], state[f"{stem}bias"]


# -- writing ----------------------------------------------------------------------------------


def write(
    folder: Path, checkpoint: Checkpoint, *, language_model: LanguageModelFiles | None = None
) -> tuple[str, ...]:
    """Write a folder that ``from_pretrained`` of transformers loads, into an empty one.

    Gives what such a folder cannot hold. A language model is put where
    ``Wav2Vec2ProcessorWithLM`` looks for it. Raises CheckpointError where it has no CTC model.
    """
    spec, architecture = checkpoint.spec, checkpoint.spec.architecture
    if language_model is not None and spec.tokens is None:
        raise CheckpointError(
            f"a {spec.kind} model has no letters that a language model could weigh",
            where=str(checkpoint.path),
        )
    write_json(folder / "config.json", config_of(spec))
    state = export_state(checkpoint.weights, architecture, "hf", spec.kind)
    if (width := architecture.width) == architecture.conv_layers[-1][0]:
        stem = ("" if spec.kind == "backbone" else _BODY) + _PROJECTION
        state |= {f"{stem}weight": torch.eye(width), f"{stem}bias": torch.zeros(width)}
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    audio: dict[str, Any] = {
        "feature_extractor_type": "Wav2Vec2FeatureExtractor",
        "feature_size": 1,
        "sampling_rate": SAMPLE_RATE,
        "padding_value": 0.0,
        "padding_side": "right",
        "do_normalize": architecture.normalize,
        "return_attention_mask": architecture.extractor_norm == "layer",
    }
    if spec.tokens is not None:
        processor = "Wav2Vec2Processor" + ("WithLM" if language_model else "")
        audio["processor_class"] = processor
        write_vocabulary(folder, spec.tokens, processor)
        if language_model is not None:
            write_language_model(folder, spec.tokens, language_model)
    write_json(folder / "preprocessor_config.json", audio)
    phrases = lost(checkpoint, "transformers")
    if spec.tokens is not None and "<unk>" not in spec.tokens.symbols:
        phrases.append(
            "a row for unknown letters, which this vocabulary has none of: the tokenizer"
            " gives None for them"
        )
    return tuple(phrases)
