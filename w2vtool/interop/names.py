"""Parameter names of fairseq, Hugging Face transformers and torchaudio: one table, both ways.

Goes in: a state dict and the architecture it belongs to. Goes out: the same numbers under other
names, with every key used or named. Query, key and value are one matrix here and three there, the
codebook has one more axis here; nothing else is reshaped, so there and back is equal to the bit.

Source: the table of names in fairseq ``Wav2Vec2Model``, transformers ``Wav2Vec2Model`` and
torchaudio ``Wav2Vec2Model``, compared key by key with the installed packages in the tests.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from w2vtool.architecture import Architecture
from w2vtool.checkpoint import Checkpoint, Spec
from w2vtool.errors import CheckpointError
from w2vtool.tokens import SPECIALS, Tokens

Toolkit = Literal["fairseq", "hf", "torchaudio"]
SHOWN = 12  # keys of each sort that one error lists
_PADS = ("<pad>", "[PAD]", "-")  # what a CTC blank is called in lists of symbols


class _Row(NamedTuple):
    """One module or parameter; {i} is a layer number, an empty name means there is none."""

    ours: str
    fairseq: str
    hf: str  # torchaudio's is derived from it


_BODY = (
    _Row(
        "feature_encoder.layers.{i}.conv",
        "feature_extractor.conv_layers.{i}.0",
        "feature_extractor.conv_layers.{i}.conv",
    ),
    _Row(
        "feature_encoder.layers.{i}.norm",
        "feature_extractor.conv_layers.{i}.2",
        "feature_extractor.conv_layers.{i}.layer_norm",
    ),
    _Row("frame_norm", "layer_norm", "feature_projection.layer_norm"),
    _Row("project", "post_extract_proj", "feature_projection.projection"),
    _Row("mask_embedding", "mask_emb", "masked_spec_embed"),
    _Row(
        "context.positions.weight_g",
        "encoder.pos_conv.0.weight_g",
        "encoder.pos_conv_embed.conv.parametrizations.weight.original0",
    ),
    _Row(
        "context.positions.weight_v",
        "encoder.pos_conv.0.weight_v",
        "encoder.pos_conv_embed.conv.parametrizations.weight.original1",
    ),
    _Row("context.positions.bias", "encoder.pos_conv.0.bias", "encoder.pos_conv_embed.conv.bias"),
    _Row("context.norm", "encoder.layer_norm", "encoder.layer_norm"),
    _Row(
        "context.blocks.{i}.attention.out",
        "encoder.layers.{i}.self_attn.out_proj",
        "encoder.layers.{i}.attention.out_proj",
    ),
    _Row(
        "context.blocks.{i}.attention_norm",
        "encoder.layers.{i}.self_attn_layer_norm",
        "encoder.layers.{i}.layer_norm",
    ),
    _Row(
        "context.blocks.{i}.up",
        "encoder.layers.{i}.fc1",
        "encoder.layers.{i}.feed_forward.intermediate_dense",
    ),
    _Row(
        "context.blocks.{i}.down",
        "encoder.layers.{i}.fc2",
        "encoder.layers.{i}.feed_forward.output_dense",
    ),
    _Row(
        "context.blocks.{i}.norm",
        "encoder.layers.{i}.final_layer_norm",
        "encoder.layers.{i}.final_layer_norm",
    ),
)
_HEADS = (
    _Row("quantizer.codebook", "quantizer.vars", "quantizer.codevectors"),
    _Row("quantizer.weights", "quantizer.weight_proj", "quantizer.weight_proj"),
    _Row("project_targets", "project_q", "project_q"),
    _Row("project_context", "final_proj", "project_hid"),
    _Row("head", "w2v_encoder.proj", "lm_head"),
)
_QKV = re.compile(r"context\.blocks\.(\d+)\.attention\.qkv\.(weight|bias)")
_OURS = "wav2vec2."
_CTC_BODY = "w2v_encoder.w2v_model."  # fairseq's, of fine-tuned models
CTC_HEAD = "w2v_encoder.proj."
# how weight norm was spelled before torch's parametrisations, and how it is spelled since
_SPELLINGS = {
    "conv.weight_g": "conv.parametrizations.weight.original0",
    "conv.weight_v": "conv.parametrizations.weight.original1",
}


def names_of(
    ours: str, toolkit: Toolkit, kind: str, extractor_norm: str = "group"
) -> tuple[str, ...]:
    """The names of one of our parameters there: one, three for ``qkv``, none if it has no place.

    ``kind`` is that of the model ("pretrain", "ctc", "backbone"), which decides on prefixes. Raises
    KeyError for a name that is not ours.
    """
    if not ours.startswith(_OURS):
        row, leaf = _row(ours, _HEADS)
        if toolkit == "torchaudio":
            return (f"aux.{leaf}",) if row.ours == "head" else ()
        return (_join(row.fairseq if toolkit == "fairseq" else row.hf, leaf),)
    name = ours.removeprefix(_OURS)
    if match := _QKV.fullmatch(name):
        attention = "self_attn" if toolkit == "fairseq" else "attention"
        stems = [f"encoder.layers.{match[1]}.{attention}.{part}_proj" for part in "qkv"]
        names = [f"{stem}.{match[2]}" for stem in stems]
    else:
        row, leaf = _row(name, _BODY)
        theirs = row.fairseq if toolkit == "fairseq" else row.hf
        per_frame = extractor_norm == "layer" and row.ours == "feature_encoder.layers.{i}.norm"
        if toolkit == "fairseq" and per_frame:
            theirs += ".1"  # a transpose, the norm and a transpose back
        numbers = re.findall(r"\d+", name)
        names = [_join(theirs.format(i=numbers[0] if numbers else ""), leaf)]
    return tuple(placed for theirs in names if (placed := _placed(theirs, toolkit, kind)))


def _row(name: str, rows: tuple[_Row, ...]) -> tuple[_Row, str]:
    """The row that a name belongs to, and what the name says beyond it ("weight", "bias", "")."""
    plain = re.sub(r"\.\d+(?=\.)", ".{i}", name)
    for row in rows:
        if plain == row.ours:
            return row, ""
        if plain.rpartition(".")[0] == row.ours:
            return row, plain.rpartition(".")[2]
    raise KeyError(name)


def _join(stem: str, leaf: str) -> str:
    return f"{stem}.{leaf}" if leaf else stem


def _placed(name: str, toolkit: Toolkit, kind: str) -> str:
    """A name of the body with the prefix that it has in a model of this kind."""
    if toolkit == "fairseq":
        return (_CTC_BODY if kind == "ctc" else "") + name
    if toolkit == "hf":
        return name if kind == "backbone" else f"wav2vec2.{name}"
    if name == "masked_spec_embed":
        return ""  # torchaudio has none
    if name.startswith("feature_projection."):
        return f"encoder.{name}"
    if name.startswith("encoder."):
        return f"encoder.transformer.{name.removeprefix('encoder.')}"
    return name


def export_state(
    state: Mapping[str, Tensor], architecture: Architecture, toolkit: Toolkit, kind: str
) -> dict[str, Tensor]:
    """Our parameters (or gradients) under their names; those without a place are left out."""
    out: dict[str, Tensor] = {}
    for ours, value in state.items():
        names = names_of(ours, toolkit, kind, architecture.extractor_norm)
        if ours == "quantizer.codebook":
            value = value.reshape(1, -1, value.shape[-1])
        pieces = value.chunk(3) if len(names) == 3 else (value,) * len(names)
        out |= {name: piece.contiguous() for name, piece in zip(names, pieces, strict=True)}
    return out


def import_state(
    state: Mapping[str, Tensor],
    spec: Spec,
    toolkit: Toolkit,
    where: str,
    *,
    may_lack: tuple[str, ...] = (),
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """A foreign state dict under our names in float32, and the names of what it does not have.

    Only parameters in ``may_lack`` may be missing. Weight norm may be spelled in either way.
    Raises CheckpointError that lists all missing keys, all keys without a place, and all tensors
    with another shape than the architecture says.
    """
    left = {_spelling(key, toolkit): (key, value) for key, value in state.items()}
    with torch.device("meta"):
        wanted = spec.build().state_dict()
    out: dict[str, Tensor] = {}
    missing: list[str] = []
    misshapen: list[str] = []
    fresh: list[str] = []
    for ours, expected in wanted.items():
        parts = export_state({ours: expected}, spec.architecture, toolkit, spec.kind)
        found = {name: left.pop(name) for name in parts if name in left}
        for name, (key, value) in found.items():
            if value.shape != parts[name].shape:
                shapes = f"{tuple(value.shape)}, the model wants {tuple(parts[name].shape)}"
                misshapen.append(f"{key} is {shapes}")
        if ours in may_lack and not found:
            fresh.append(ours)
            continue
        missing += [name for name in parts if name not in found]
        if parts and len(found) == len(parts) and not misshapen:
            pieces = [value.float() for _, value in found.values()]
            joined = torch.cat(pieces) if len(pieces) > 1 else pieces[0].clone()
            out[ours] = joined.reshape(expected.shape)
    _refuse(missing, [key for key, _ in left.values()], misshapen, where)
    return out, tuple(fresh)


def _spelling(key: str, toolkit: Toolkit) -> str:
    """The key with weight norm spelled as in the table."""
    if toolkit != "fairseq":
        for old, new in _SPELLINGS.items():
            if key.endswith(old):
                return key.removesuffix(old) + new
    return key


def _refuse(missing: list[str], left: list[str], misshapen: list[str], where: str) -> None:
    problems = []
    for what, keys in (("missing", missing), ("without a place", left), ("", misshapen)):
        if keys:
            rest = len(keys) - SHOWN
            more = [f"… and {rest} more"] if rest > 0 else []
            head = f"{len(keys)} {'key' if len(keys) == 1 else 'keys'} "
            head += what or "of another shape"
            problems.append("\n    ".join([head, *keys[:SHOWN], *more]))
    if problems:
        raise CheckpointError(
            "\n  ".join(["the weights do not fit the architecture", *problems]),
            where=where,
            hint="is it a wav2vec 2.0 model, with the sizes that its configuration says?",
        )


class Hints(NamedTuple):
    """What a person says about a file, where the file itself is silent or wrong."""

    tokens: Tokens | None = None
    normalize: bool | None = None
    heads: int | None = None
    norm_first: bool | None = None


NO_HINTS = Hints()


class Source(NamedTuple):
    """A foreign checkpoint in our terms."""

    toolkit: Toolkit
    form: str  # for people: "fairseq checkpoint, pre-hydra (args)", "Wav2Vec2ForCTC folder" …
    spec: Spec
    state: dict[str, Tensor]  # float32, by our names
    fresh: tuple[str, ...]  # our parameters that are not in the file
    left_out: tuple[str, ...]  # what is in the file and has no use here, with the reason
    warnings: tuple[str, ...]  # what changes results
    history: dict[str, object]  # JSON types: how it was trained, as far as the file says
    files: tuple[Path, ...]  # all that was read


def agreed(heads: object, norm_first: object, hints: Hints, where: str) -> None:
    """Raise CheckpointError where the person contradicts what the file says; None says nothing."""
    wrong = [
        f"{flag} says {said}, the file {found}"
        for flag, found, said in (
            ("--heads", heads, hints.heads),
            ("--norm-first", norm_first, hints.norm_first),
        )
        if said is not None and found is not None and said != found
    ]
    if wrong:
        raise CheckpointError(
            "; ".join(wrong),
            where=where,
            hint="leave the flag out: it is for files that do not say it",
        )


def vocabulary(
    found: Tokens | None, hints: Hints, rows: int, where: str
) -> tuple[Tokens, tuple[str, ...]]:
    """The tokens of a CTC model with ``rows`` outputs, and a warning where the file has others.

    They are those that the person gave, else the file's. Raises CheckpointError when there are
    none, or not as many as outputs.
    """
    tokens = hints.tokens or found
    if tokens is None:
        raise CheckpointError(
            f"a CTC model with {rows} outputs, and the file does not say what they stand for",
            where=where,
            hint="give the vocabulary: --vocab dict.ltr.txt, --vocab vocab.json, or --vocab letters"
            " for fairseq's English letters",
        )
    if len(tokens) != rows:
        raise CheckpointError(
            f"the vocabulary has {len(tokens)} symbols, the CTC head {rows} outputs",
            where=where,
            hint="is it the dictionary that this model was fine-tuned with?",
        )
    if found is None or tokens.symbols == found.symbols:
        return tokens, ()
    differ = [
        f"row {row} is {given!r}, not {said!r}"
        for row, (given, said) in enumerate(zip(tokens.symbols, found.symbols, strict=False))
        if given != said
    ]
    differ += [f"{len(found)} symbols there"] * (len(found) != rows)
    more = ", …" if len(differ) > SHOWN else ""
    text = "the vocabulary given with --vocab is taken, which is not that of the file: "
    return tokens, (text + ", ".join(differ[:SHOWN]) + more,)


def with_blank(tokens: Tokens, blank: int | None, where: str) -> tuple[Tokens, tuple[str, ...]]:
    """Tokens that a person gave with their blank in the row where the model has it, and a warning.

    A list of symbols cannot say it, so the first row is taken there. Raises CheckpointError when
    that row of the model is a letter in these tokens. ``blank`` is None where nobody knows.
    """
    if blank in (None, tokens.blank) or not 0 <= (blank or 0) < len(tokens):
        return tokens, ()
    assert blank is not None
    name, symbols = tokens.symbols[blank], list(tokens.symbols)
    if name not in _PADS:
        raise CheckpointError(
            f"the vocabulary given has its blank in row {tokens.blank} "
            f"({symbols[tokens.blank]!r}), the model in row {blank}, which is {name!r} there",
            where=where,
            hint="is it the vocabulary that this model was fine-tuned with?",
        )
    if SPECIALS[0] in symbols:  # what we call the blank
        free = SPECIALS[1] not in symbols
        symbols[symbols.index(SPECIALS[0])] = SPECIALS[1] if free else name
    symbols[blank] = SPECIALS[0]
    text = (
        f"row {blank} ({name}) of the vocabulary given is taken as the CTC blank, as in the model"
    )
    return Tokens(tuple(symbols), blank, tokens.kind, tokens.model), (text,)


def case_of(tokens: Tokens | None) -> str:
    """The case that transcripts must be in for these tokens: "upper", "lower" or "keep".

    Only single letters and pieces tell: names of special symbols are in a case of their own.
    """
    symbols = (symbol for symbol in tokens.symbols if symbol not in SPECIALS) if tokens else ()
    pieces = tokens is not None and tokens.kind == "sentencepiece"
    letters = "".join(symbol for symbol in symbols if pieces or len(symbol) == 1)
    cased = {letter for letter in letters if letter.upper() != letter.lower()}
    if all(letter.upper() == letter for letter in cased):
        return "upper"
    return "lower" if all(letter.lower() == letter for letter in cased) else "keep"


def lost(checkpoint: Checkpoint, toolkit: str) -> list[str]:
    """What no toolkit's format holds of this checkpoint, a phrase each."""
    spec, state = checkpoint.spec, checkpoint.state
    phrases = []
    if spec.tokens is not None:
        phrases.append(f"how transcripts are spelled ({spec.rules})")
        if spec.tokens.kind == "sentencepiece":
            phrases.append(
                f"the rule that joins SentencePiece's pieces to words: {toolkit} prints ▁ where"
                " words begin"
            )
    if (checkpoint.path / "optimizer.safetensors").exists():
        phrases.append("the optimizer's state")
    if state.get("step") or state.get("history"):
        phrases.append("the history of the training: settings and metrics")
    return phrases
