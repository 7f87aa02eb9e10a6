"""Names and files of other toolkits: fairseq state dicts to ours and back, one table.

Goes in: a fairseq ``.pt`` file or state dict. Goes out: our architecture and state dict, with every
key used or named. Pickles are read by torch's restricted un-pickler only, with inert stand-ins for
the foreign classes that fairseq files hold; nothing in them is ever executed.
"""

from __future__ import annotations

import ast
import pickle
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from pydantic import ValidationError
from torch import Tensor

from w2vtool.errors import CheckpointError
from w2vtool.schema import Architecture

# Ours → fairseq's. {i} is a layer number. Query, key and value are one matrix here, three there.
_NAMES = {
    "wav2vec2.feature_encoder.layers.{i}.conv": "feature_extractor.conv_layers.{i}.0",
    "wav2vec2.feature_encoder.layers.{i}.norm": "feature_extractor.conv_layers.{i}.2",
    "wav2vec2.frame_norm": "layer_norm",
    "wav2vec2.project": "post_extract_proj",
    "wav2vec2.mask_embedding": "mask_emb",
    "wav2vec2.context.positions": "encoder.pos_conv.0",
    "wav2vec2.context.norm": "encoder.layer_norm",
    "wav2vec2.context.blocks.{i}.attention.out": "encoder.layers.{i}.self_attn.out_proj",
    "wav2vec2.context.blocks.{i}.attention_norm": "encoder.layers.{i}.self_attn_layer_norm",
    "wav2vec2.context.blocks.{i}.up": "encoder.layers.{i}.fc1",
    "wav2vec2.context.blocks.{i}.down": "encoder.layers.{i}.fc2",
    "wav2vec2.context.blocks.{i}.norm": "encoder.layers.{i}.final_layer_norm",
    "quantizer.codebook": "quantizer.vars",
    "quantizer.weights": "quantizer.weight_proj",
    "project_targets": "project_q",
    "project_context": "final_proj",
}
_QKV = re.compile(r"wav2vec2\.context\.blocks\.(\d+)\.attention\.qkv\.(weight|bias)")
_CTC_BODY, _CTC_HEAD = "w2v_encoder.w2v_model.", "w2v_encoder.proj."
_FOREIGN = re.compile(
    r"argparse\.Namespace|omegaconf\.[\w.]+|fairseq\.[\w.]+|typing\.Any"
    r"|builtins\.(dict|list|int|float|str|bool)|collections\.defaultdict"
    r"|numpy\.(dtype|ndarray|(_?core\.)multiarray\.(scalar|_reconstruct))"
)
MAX_CONV_LAYERS = 100  # a specification that asks for more is a mistake or an attack


class Imported(NamedTuple):
    """A foreign checkpoint in our terms."""

    kind: str  # "pretrain" or "ctc"
    architecture: Architecture
    state: dict[str, Tensor]  # for PretrainModel or CtcModel
    settings: dict[str, Any]  # the foreign model configuration, as plain values


def to_fairseq(state: Mapping[str, Tensor], architecture: Architecture) -> dict[str, Tensor]:
    """Our parameters (or gradients) of a pre-training or CTC model under fairseq's names."""
    body = _CTC_BODY if "head.weight" in state else ""
    out: dict[str, Tensor] = {}
    for name, value in state.items():
        if name.startswith("head."):
            out[_CTC_HEAD + name.removeprefix("head.")] = value
        elif match := _QKV.fullmatch(name):
            for part, piece in zip("qkv", value.chunk(3), strict=True):
                out[f"{body}encoder.layers.{match[1]}.self_attn.{part}_proj.{match[2]}"] = piece
        elif name == "quantizer.codebook":
            out["quantizer.vars"] = value.reshape(1, -1, value.shape[-1])
        else:
            out[body + _fairseq_name(name, architecture)] = value
    return out


def from_fairseq(state: Mapping[str, Tensor], architecture: Architecture) -> dict[str, Tensor]:
    """A fairseq state dict under our names.

    Raises CheckpointError listing missing and unknown keys, or for a shape that does not fit.
    """
    left, out = dict(state), {}
    body = _CTC_BODY if any(key.startswith(_CTC_BODY) for key in left) else ""
    with torch.device("meta"):
        ours = _empty_model(architecture, left, body).state_dict()
    missing: list[str] = []
    for name, expected in ours.items():
        wanted = to_fairseq({name: expected} | _head_marker(body, name), architecture)
        if body and name != "head.weight":
            del wanted[_CTC_HEAD + "weight"]  # the marker
        found = {key: left.pop(key) for key in wanted if key in left}
        for key, value in found.items():
            if value.shape != wanted[key].shape:
                shape = tuple(wanted[key].shape)
                raise CheckpointError(f"{key} has shape {tuple(value.shape)}, not {shape}")
        if len(found) == len(wanted):
            out[name] = torch.cat(list(found.values())).reshape(expected.shape)
        missing += [key for key in wanted if key not in found]
    if missing or left:
        raise CheckpointError(
            f"keys that are missing: {', '.join(missing) or 'none'}; "
            f"keys that have no place: {', '.join(left) or 'none'}",
            hint="is it a wav2vec 2.0 model with this architecture?",
        )
    return out


def _head_marker(body: str, name: str) -> dict[str, Tensor]:
    """What makes ``to_fairseq`` write the names of a CTC model for a single parameter."""
    return {"head.weight": torch.empty(0)} if body and name != "head.weight" else {}


def _empty_model(
    architecture: Architecture, state: Mapping[str, Tensor], body: str
) -> torch.nn.Module:
    from w2vtool.model.heads import CtcModel, PretrainModel

    if body:
        head = (state[_CTC_HEAD + leaf] for leaf in ("bias", "weight") if _CTC_HEAD + leaf in state)
        return CtcModel(architecture, len(next(head, torch.empty(1))))
    return PretrainModel(architecture)


def _fairseq_name(name: str, architecture: Architecture) -> str:
    stem, _, leaf = name.rpartition(".")
    for ours, theirs in _NAMES.items():
        pattern = re.escape(ours).replace(r"\{i\}", r"(\d+)")
        if re.fullmatch(pattern, name):
            return theirs
        if match := re.fullmatch(pattern, stem):
            out = theirs.format(i=match[1]) if match.groups() else theirs
            if architecture.extractor_norm == "layer" and out.endswith(".2"):
                out += ".1"  # a transpose, the norm and a transpose back
            return f"{out}.{leaf}"
    raise KeyError(name)


def architecture_from_fairseq(settings: Mapping[str, Any]) -> Architecture:
    """Sizes from fairseq's model options (``args`` or ``cfg.model``), defaults where not given.

    Raises CheckpointError for options that make no network of ours.
    """
    try:
        return _architecture(settings)
    except ValidationError as exc:
        wrong = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in exc.errors())
        raise CheckpointError(f"the model options make no wav2vec 2.0 network: {wrong}") from exc


def _architecture(settings: Mapping[str, Any]) -> Architecture:
    spec = settings.get("conv_feature_layers", "[(512,10,5)]+[(512,3,2)]*4+[(512,2,2)]*2")
    return Architecture(
        conv_layers=_conv_spec(str(spec)),
        extractor_norm="layer" if settings.get("extractor_mode") == "layer_norm" else "group",
        conv_bias=settings.get("conv_bias", False),
        width=settings.get("encoder_embed_dim", 768),
        layers=settings.get("encoder_layers", 12),
        heads=settings.get("encoder_attention_heads", 12),
        ffn_width=settings.get("encoder_ffn_embed_dim", 3072),
        norm_first=settings.get("layer_norm_first", False),
        position_kernel=settings.get("conv_pos", 128),
        position_groups=settings.get("conv_pos_groups", 16),
        codebook_groups=settings.get("latent_groups", 2),
        codebook_entries=settings.get("latent_vars", 320),
        final_width=settings.get("final_dim", 0) or settings.get("encoder_embed_dim", 768),
        normalize=settings.get("normalize", False),
    )


def _conv_spec(text: str) -> tuple[tuple[int, int, int], ...]:
    """Fairseq's ``[(512,10,5)] + [(512,3,2)] * 4``, which it runs through ``eval``, parsed."""

    def value(node: ast.expr) -> list[tuple[int, ...]]:
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
            return value(node.left) + value(node.right)
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult):
            times = int(ast.literal_eval(node.right))
            if times > MAX_CONV_LAYERS:
                raise ValueError(f"{times} layers")
            return value(node.left) * times
        return list(ast.literal_eval(node))

    try:
        layers = value(ast.parse(text.strip(), mode="eval").body)
        return tuple((c, k, s) for c, k, s in layers)
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError) as exc:
        raise CheckpointError(f"conv_feature_layers cannot be read: {text!r}") from exc


class _Foreign:
    """Stands for an object of a foreign class: keeps arguments and state, has no behaviour."""

    def __new__(cls, *args: object, **kwargs: object) -> _Foreign:
        self = object.__new__(cls)
        self.__dict__["arguments"] = args
        return self

    def __setstate__(self, state: object) -> None:
        self.__dict__["state"] = state


def _empty_dict(*_: object) -> dict[object, object]:
    """Stands for ``defaultdict``, whose items the un-pickler then fills in."""
    return {}


def _plain(value: Any, depth: int = 0) -> Any:
    """Stand-ins as dicts, lists and values; OmegaConf's content without its bookkeeping."""
    if isinstance(value, _Foreign):
        state, arguments = value.__dict__.get("state", {}), value.__dict__["arguments"]
        if "state" not in value.__dict__ and len(arguments) == 1:  # a member of an Enum
            return _plain(arguments[0], depth + 1)
        if isinstance(state, tuple):
            state = state[-1]
        for key in ("_content", "_val"):
            if isinstance(state, dict) and key in state:
                return _plain(state[key], depth + 1)
        return _plain(state, depth + 1)
    if depth > 20:
        return None
    if isinstance(value, Mapping):
        return {str(k): _plain(v, depth + 1) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v, depth + 1) for v in value]
    return value


def load_pickle(path: Path) -> dict[str, Any]:
    """A fairseq file as plain data, without running anything in it.

    Raises CheckpointError for a file that is not a checkpoint, or that names a class or function
    which a fairseq checkpoint has no need of.
    """
    try:
        names: Iterable[str] = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except OSError as exc:
        raise CheckpointError(f"cannot be read ({exc.strerror})", where=str(path)) from exc
    except (ValueError, RuntimeError, pickle.UnpicklingError) as exc:
        raise CheckpointError(
            f"not a checkpoint in torch's zip format: {exc}",
            where=str(path),
            hint="a file written by torch before 1.6 must be saved again by a newer torch",
        ) from exc
    refused = [name for name in names if not _FOREIGN.fullmatch(name)]
    if refused:
        raise CheckpointError(
            f"refused to load: the file asks for {', '.join(refused)}",
            where=str(path),
            hint="a wav2vec 2.0 checkpoint needs none of these; do not load this file elsewhere",
        )
    stubs = [
        (_empty_dict, name)
        if name == "collections.defaultdict"
        else (type(name.rpartition(".")[2], (_Foreign,), {}), name)
        for name in names
    ]
    try:
        with torch.serialization.safe_globals(stubs):  # type: ignore[arg-type]
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError) as exc:
        # torch's own text advises to switch its protection off, so only its last part is passed on
        reason = str(exc).partition("WeightsUnpickler error:")[2] or type(exc).__name__
        raise CheckpointError(
            f"the pickle cannot be read: {reason.strip().splitlines()[0]}", where=str(path)
        ) from exc
    model = loaded.get("model") if isinstance(loaded, dict) else None
    if not isinstance(model, dict) or not all(isinstance(v, Tensor) for v in model.values()):
        raise CheckpointError("no model in this file", where=str(path))
    return {key: value if key == "model" else _plain(value) for key, value in loaded.items()}


def load_fairseq(path: Path) -> Imported:
    """Read a fairseq wav2vec 2.0 checkpoint, pre-training or CTC, old (args) or new (cfg) form."""
    loaded = load_pickle(path)
    settings = (loaded.get("cfg") or {}).get("model") or loaded.get("args") or {}
    inner = settings.get("w2v_args") or settings
    inner = inner.get("model", inner) if isinstance(inner, Mapping) else settings
    task = (loaded.get("cfg") or {}).get("task") or {}
    inner = {"normalize": settings.get("normalize", task.get("normalize", False)), **inner}
    architecture = architecture_from_fairseq(inner)
    state = dict(loaded["model"])
    kind = "ctc" if any(key.startswith(_CTC_BODY) for key in state) else "pretrain"
    return Imported(kind, architecture, from_fairseq(state, architecture), dict(settings))
