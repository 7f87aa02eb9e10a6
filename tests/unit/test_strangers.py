"""Other models are named as what they are, and no wav2vec 2.0 is taken for one of them."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from w2vtool.architecture import Architecture
from w2vtool.checkpoint import Spec
from w2vtool.errors import CheckpointError
from w2vtool.interop.names import export_state
from w2vtool.interop.strangers import refuse
from w2vtool.tokens import Tokens

NOT_OURS = "a {} checkpoint, not wav2vec 2.0"
BODY = ["feature_extractor.conv_layers.0.0.weight", "encoder.layers.0.fc1.weight", "mask_emb"]
# Keys as the toolkits' own files have them, beside those that wav2vec 2.0 has too.
KEYS = {
    NOT_OURS.format("HuBERT"): [["label_embs_concat"], ["logit_generator.label_embeddings"]],
    NOT_OURS.format("WavLM"): [
        ["encoder.layers.0.self_attn.grep_linear.weight"],
        ["encoder.transformer.layers.0.attention.rel_attn_embed.weight"],
    ],
    NOT_OURS.format("wav2vec 1.0"): [
        ["feature_aggregator.conv_layers.0.1.weight", "wav2vec_predictions.project_to_steps.bias"]
    ],
    NOT_OURS.format("vq-wav2vec"): [["vector_quantizer.vars", "feature_aggregator.x.weight"]],
    NOT_OURS.format("data2vec"): [
        ["encoder.pos_conv.0.0.weight"],
        ["w2v_encoder.w2v_model.encoder.pos_conv.4.0.bias"],
        ["modality_encoders.AUDIO.local_encoder.conv_layers.0.0.weight"],
    ],
    "a wav2vec 2.0 Conformer": [["encoder.layers.0.conv_module.depthwise_conv.weight"]],
    NOT_OURS.format("SEW"): [["encoder.upsample.0.weight"]],
    NOT_OURS.format("wav2vec-U"): [["generator.proj.1.weight", "discriminator.net.0.1.weight"]],
    "a sequence-to-sequence model": [
        ["encoder.w2v_model.mask_emb", "decoder.layers.0.fc1.weight"],
        ["encoder.encoder.layers.0.fc1.weight", "decoder.model.decoder.embed_tokens.weight"],
    ],
    NOT_OURS.format("Whisper"): [["encoder.positional_embedding", "encoder.conv1.weight"]],
    "a checkpoint of fairseq2": [
        ["encoder_frontend.post_extract_layer_norm.weight", "final_target_proj.weight"],
        ["model.encoder_frontend.model_dim_proj.weight"],
    ],
    "a checkpoint of SpeechBrain's own": [
        ["0.extractor.convblock_0.convs.conv_0.conv.weight"],
        ["latent_projector.w.weight"],
    ],
    "as SpeechBrain's do": [["model.feature_extractor.conv_layers.0.conv.weight"]],
    NOT_OURS.format("NeMo"): [["preprocessor.featurizer.fb", "encoder.layers.0.norm_out.weight"]],
    "adapters for languages (MMS)": [
        ["encoder.layers.0.adapter_layer.W_a"],
        ["wav2vec2.encoder.layers.0.adapter_layer.linear_1.weight"],
    ],
    NOT_OURS.format("text model's"): [["decoder.sentence_encoder.embed_tokens.weight"]],
}
NAMES = {
    "hubert": "HuBERT",
    "hubert_ctc": "HuBERT",
    "wavlm": "WavLM",
    "data2vec_audio": "data2vec",
    "data2vec-audio": "data2vec",
    "wav2vec2-conformer": "Conformer",
    "wav2vec2-bert": "w2v-BERT",
    "unispeech": "UniSpeech",
    "unispeech-sat": "UniSpeech-SAT",
    "sew": "SEW",
    "sew-d": "SEW",
    "wav2vec_u": "wav2vec-U",
    "wav2vec_seq2seq": "sequence-to-sequence",
    "whisper": "Whisper",
    "bert": "text model",
    "roberta": "text model",
    "xlm-roberta": "text model",
}


@pytest.mark.parametrize("what", KEYS)
def test_other_models_are_named_by_their_keys(what: str) -> None:
    for keys in KEYS[what]:
        for given in ([*BODY, *keys], keys):
            with pytest.raises(CheckpointError) as caught:
                refuse(given, "", "model.pt")
            assert what in caught.value.what
            assert caught.value.where == "model.pt"
            assert caught.value.hint


@pytest.mark.parametrize("name", NAMES)
def test_other_models_are_named_by_what_their_settings_call_them(name: str) -> None:
    with pytest.raises(CheckpointError, match=NAMES[name]):
        refuse(BODY, name, "model.pt")


def test_a_checkpoint_of_fairseq2_comes_with_the_way_out() -> None:
    with pytest.raises(CheckpointError) as caught:
        refuse(KEYS["a checkpoint of fairseq2"][0], "", "")
    assert "Hugging Face" in caught.value.hint


SMALL: dict[str, Any] = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "vocab_size": 9,
}
CONVS: dict[str, Any] = {
    "conv_dim": (8, 8),
    "conv_kernel": (10, 3),
    "conv_stride": (5, 2),
    "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 2,
}
TRANSFORMERS: dict[str, tuple[str, dict[str, Any]]] = {
    "HubertForCTC": ("HuBERT", CONVS),
    "WavLMForCTC": ("WavLM", CONVS),
    "WavLMModel": ("WavLM", CONVS),
    "Data2VecAudioForCTC": ("data2vec", CONVS | {"conv_pos_kernel_size": 3}),
    "Wav2Vec2ConformerForCTC": ("Conformer", CONVS),
    "Wav2Vec2ConformerModel": ("Conformer", CONVS),
    "Wav2Vec2BertForCTC": ("w2v-BERT", {"feature_projection_input_dim": 8}),
    "Wav2Vec2BertModel": ("w2v-BERT", {"feature_projection_input_dim": 8}),
    "UniSpeechForCTC": ("UniSpeech", CONVS),
    "UniSpeechSatForCTC": ("UniSpeech-SAT", CONVS),
    "SEWForCTC": ("SEW", CONVS),
    "SEWDForCTC": ("SEW", CONVS),
    "BertModel": ("text model", {}),
    "RobertaModel": ("text model", {}),
}


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_models_of_transformers_are_named_by_their_keys_alone(name: str) -> None:
    transformers = pytest.importorskip("transformers")
    said, more = TRANSFORMERS[name]
    base = name.removesuffix("ForCTC").removesuffix("Model")
    config = getattr(transformers, f"{base}Config")(**SMALL, **more)
    with torch.device("meta"):
        state = getattr(transformers, name)(config).state_dict()
    with pytest.raises(CheckpointError, match=said):
        refuse(state, "", "")
    with pytest.raises(CheckpointError, match=said):
        refuse([], config.model_type, "")


def test_a_whisper_of_transformers_is_named() -> None:
    transformers = pytest.importorskip("transformers")
    sizes = {"d_model": 8, "encoder_layers": 1, "decoder_layers": 1, "vocab_size": 9}
    heads = {"encoder_attention_heads": 1, "decoder_attention_heads": 1, "pad_token_id": 0}
    with torch.device("meta"):
        model = transformers.WhisperModel(transformers.WhisperConfig(**sizes, **heads))
    for prefix in ("", "model."):
        with pytest.raises(CheckpointError, match="Whisper"):
            refuse([prefix + key for key in model.state_dict()], "", "")


@pytest.mark.parametrize("norm", ["group", "layer"])
@pytest.mark.parametrize("kind", ["pretrain", "ctc", "backbone"])
@pytest.mark.parametrize("toolkit", ["fairseq", "hf", "torchaudio"])
def test_no_wav2vec_2_is_refused(toolkit: Any, kind: str, norm: Any) -> None:
    architecture = Architecture(extractor_norm=norm, conv_bias=True)
    with torch.device("meta"):
        weights = Spec(kind, architecture, Tokens() if kind == "ctc" else None).build().state_dict()
    keys = list(export_state(weights, architecture, toolkit, kind))
    old = [key.replace("parametrizations.weight.original", "weight_") for key in keys]
    for name in ("", "wav2vec2", "wav2vec_ctc"):
        refuse(keys, name, "")
        refuse(old, name, "")


def test_no_wav2vec_2_of_transformers_is_refused() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.Wav2Vec2Config(**SMALL, **CONVS)
    for name in ("Model", "ForCTC", "ForPreTraining"):
        with torch.device("meta"):
            state = getattr(transformers, f"Wav2Vec2{name}")(config).state_dict()
        refuse(state, config.model_type, "")
