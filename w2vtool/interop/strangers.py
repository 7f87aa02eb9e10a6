"""Checkpoints of other models, told by their names: an error that says what they are.

Goes in: the keys of a state dict, and what its settings call the model. Goes out: nothing, or a
CheckpointError. Many of these are built like wav2vec 2.0 in part, so that a list of missing keys
would send a person in the wrong direction; some would even load and be something else.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

from w2vtool.errors import CheckpointError


class _Stranger(NamedTuple):
    """One other model; the patterns are for a whole name, and for a part of a key."""

    what: str
    name: str
    key: str
    hint: str = ""


_NOT_OURS = "a {} checkpoint, not wav2vec 2.0"
_INSIDE = "save the network inside of it as a Hugging Face folder, and import that"

# The first that matches is named, so those with the more special keys come first.
# Source: fairseq, transformers, torchaudio, fairseq2, SpeechBrain and NeMo.
_STRANGERS = (
    _Stranger(
        _NOT_OURS.format("WavLM"),
        r"wavlm.*",
        r"(^|\.)wavlm\.|\.grep_(linear|a)\b|\.gru_rel_pos_|\.rel_attn_embed\.",
    ),
    _Stranger(
        _NOT_OURS.format("UniSpeech-SAT"),
        r"unispeech[-_]?sat.*",
        r"^unispeech_sat\.|^speaker_proj\.|label_embeddings_concat",
    ),
    _Stranger(_NOT_OURS.format("UniSpeech"), r"unispeech.*", r"^unispeech\."),
    _Stranger(
        _NOT_OURS.format("HuBERT"),
        r"(distil)?hubert.*",
        r"(^|\.)hubert\.|(^|\.)label_embs_concat$|^logit_generator\.|^mask_generator\.",
    ),
    _Stranger(
        _NOT_OURS.format("data2vec"),
        r"data2vec.*",
        r"^data2vec|^modality_encoders\.|\bpos_conv\.\d+\.0\.|\bpos_conv_embed\.layers\.",
    ),
    _Stranger(
        _NOT_OURS.format("wav2vec2-BERT (w2v-BERT 2.0)"),
        r"(wav2vec2|w2v)[-_]?bert.*",
        r"^wav2vec2_bert\.|\bself_attn\.distance_embedding\.",
    ),
    _Stranger(
        _NOT_OURS.format("NeMo"),
        r"nemo.*",
        r"^preprocessor\.featurizer\.|^encoder\.pre_encode\.|^decoder_ssl\.",
    ),
    _Stranger(
        "a wav2vec 2.0 Conformer, whose blocks are not those of wav2vec 2.0",
        r"wav2vec2[-_]conformer.*",
        r"^wav2vec2_conformer\.|\.conv_module\.|\.pos_bias_u$",
    ),
    _Stranger(_NOT_OURS.format("SEW"), r"sew([-_].*)?", r"^sew(_d)?\.|\bencoder\.upsample\."),
    _Stranger(_NOT_OURS.format("vq-wav2vec"), r"vq[-_]?wav2vec.*", r"^vector_quantizer\."),
    _Stranger(
        _NOT_OURS.format("wav2vec 1.0"),
        "",  # fairseq's "wav2vec" is vq-wav2vec too
        r"^feature_aggregator\.|^wav2vec_predictions\.",
    ),
    _Stranger(
        _NOT_OURS.format("wav2vec-U"), r"wav2vec[-_]u.*", r"^discriminator\.|^generator\.proj\."
    ),
    _Stranger(
        _NOT_OURS.format("Whisper"),
        r"whisper.*",
        r"^(model\.)?encoder\.conv1\.|^encoder\.positional_embedding$",
    ),
    _Stranger(
        "a sequence-to-sequence model with a decoder, not a CTC or a pre-trained wav2vec 2.0",
        r"wav2vec_seq2seq|speech-encoder-decoder",
        r"^encoder\.w2v_model\.|^decoder\.(layers|embed_tokens|model)\.",
    ),
    _Stranger(
        "a checkpoint of fairseq2, whose names and files differ from fairseq's",
        r"fairseq2.*",
        r"^(model\.)?encoder_frontend\.",
        "convert it with fairseq2 to a fairseq file or a Hugging Face folder, and import that",
    ),
    _Stranger(
        "a checkpoint of SpeechBrain's own wav2vec 2.0, whose network differs",
        r"speechbrain.*",
        r"(^|\.)convblock_\d+\.|(^|\.)latent_projector\.w\.",
    ),
    _Stranger(
        "a checkpoint that wraps a model of transformers, as SpeechBrain's do",
        "",
        r"^model\.(wav2vec2\.)?(feature_extractor|feature_projection|masked_spec_embed)\b",
        _INSIDE,
    ),
    _Stranger(
        "a wav2vec 2.0 checkpoint with adapters for languages (MMS), which have no place here",
        "",
        r"\badapter_layer\b",
        "import the model without adapters that this one was made from",
    ),
    _Stranger(
        _NOT_OURS.format("text model's"),
        r"(xlm[-_])?(roberta|bert|albert|electra|deberta|bart|mbart|gpt2|t5|mt5).*",
        r"\bword_embeddings\.|\bsentence_encoder\.|\bembed_tokens\.|^(transformer\.)?wte\.",
    ),
)


def refuse(keys: Iterable[str], name: str, where: str) -> None:
    """Raise CheckpointError that names the model if it is a known one other than wav2vec 2.0.

    ``name`` is what its settings call it (fairseq's ``_name`` or ``arch``, transformers'
    ``model_type``), empty if they do not.
    """
    keys = list(keys)
    for stranger in _STRANGERS:
        named = bool(name) and re.fullmatch(stranger.name, name, re.IGNORECASE)
        if named or any(re.search(stranger.key, key) for key in keys):
            raise CheckpointError(
                stranger.what,
                where=where,
                hint=stranger.hint or "w2vtool imports wav2vec 2.0 models only",
            )
