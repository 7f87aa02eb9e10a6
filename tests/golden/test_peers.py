"""The same random weights give the same numbers in transformers and torchaudio: no downloads."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import toys
from torch import Tensor, nn

from w2vtool.architecture import Architecture
from w2vtool.interop.names import export_state
from w2vtool.losses import contrastive_loss
from w2vtool.model.encoder import Wav2Vec2
from w2vtool.model.heads import CtcModel, PretrainModel
from w2vtool.model.masking import equalise, mix, negatives, span_mask

torch.set_num_threads(1)
TOLERANCE = 1e-5  # relative to the largest value of the tensor
SHAPES = [(10, 5), *[(3, 2)] * 4, *[(2, 2)] * 2]
SMALL: dict[str, Any] = {
    "conv_layers": tuple((24, kernel, stride) for kernel, stride in SHAPES),
    "width": 48,
    "layers": 3,
    "heads": 4,
    "ffn_width": 96,
    "position_kernel": 16,
    "position_groups": 4,
    "codebook_entries": 7,
    "final_width": 20,
}
STYLES = {
    "base": Architecture(**SMALL),
    "large": Architecture(**SMALL, **toys.LV60K),
}
LENGTHS = [16_000, 9_000, 12_345]


def hf_names(model: PretrainModel | CtcModel) -> dict[str, Tensor]:
    """Our weights under the names of transformers' models with a head."""
    kind = "ctc" if isinstance(model, CtcModel) else "pretrain"
    return export_state(model.state_dict(), model.wav2vec2.architecture, "hf", kind)


def torchaudio_names(model: CtcModel) -> dict[str, Tensor]:
    return export_state(model.state_dict(), model.wav2vec2.architecture, "torchaudio", "ctc")


def hf_config(style: str) -> Any:
    return toys.hf_config(STYLES[style], vocab_size=32)


def ours(style: str, kind: str) -> Any:
    torch.manual_seed(0)
    sizes = STYLES[style]
    model = PretrainModel(sizes) if kind == "pretrain" else CtcModel(sizes, 32)
    toys.shake(model)
    return model.eval()


def load_all(theirs: nn.Module, weights: dict[str, Tensor]) -> nn.Module:
    """Load, with every name of both sides used."""
    theirs.load_state_dict(weights, strict=True)
    return theirs.eval()


def check(got: Tensor, want: Tensor) -> None:
    assert got.shape == want.shape
    assert (got - want).abs().max() <= TOLERANCE * want.abs().max()


def padded_waves() -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    waves = [torch.randn(length) for length in LENGTHS]
    return nn.utils.rnn.pad_sequence(waves, batch_first=True), torch.tensor(LENGTHS)


@pytest.mark.parametrize("style", STYLES)
def test_every_hidden_state_is_that_of_transformers(style: str) -> None:
    config = hf_config(style)
    transformers = pytest.importorskip("transformers")
    model = ours(style, "ctc")
    theirs = load_all(transformers.Wav2Vec2ForCTC(config), hf_names(model))
    names = [str(i) for i in range(config.num_hidden_layers + 1)]
    wave_BS = padded_waves()[0]
    with torch.no_grad():
        want = theirs.wav2vec2(wave_BS, output_hidden_states=True)
        context = model.wav2vec2(wave_BS, layers=("conv", *names))
        check(model.wav2vec2.encode(wave_BS).x_BTC, want.extract_features)
        for name in names[:-1]:  # the last of a pre-LN model has the final norm in 4.x, not in 5.x
            check(context.layers[name], want.hidden_states[int(name)])
        check(context.x_BTD, want.last_hidden_state)
        check(model(wave_BS)[0], theirs(wave_BS).logits)


@pytest.mark.parametrize("style", STYLES)
def test_a_single_row_is_that_of_transformers(style: str) -> None:
    transformers = pytest.importorskip("transformers")
    model = ours(style, "ctc")
    theirs = load_all(transformers.Wav2Vec2ForCTC(hf_config(style)), hf_names(model))
    wave_BS = padded_waves()[0][1:2, : LENGTHS[1]]
    with torch.no_grad():
        check(model(wave_BS)[0], theirs(wave_BS).logits)


@pytest.mark.parametrize("style", STYLES)
def test_the_quantizer_is_that_of_transformers(style: str) -> None:
    transformers = pytest.importorskip("transformers")
    model = ours(style, "pretrain")
    theirs = load_all(transformers.Wav2Vec2ForPreTraining(hf_config(style)), hf_names(model))
    wave_BS = padded_waves()[0]
    with torch.no_grad():
        x_BTC = model.wav2vec2.encode(wave_BS).x_BTC
        want_BTD, perplexity = theirs.quantizer(x_BTC)  # over all frames, no noise in evaluation
        got = model.quantizer(x_BTC.flatten(0, 1))
    check(got.q_MD, want_BTD.flatten(0, 1))
    check(got.code_perplexity, perplexity)
    assert got.codes_M.unique().numel() > 2


@pytest.mark.parametrize("style", STYLES)
def test_valid_frames_of_a_padded_batch_are_those_of_transformers(style: str) -> None:
    transformers = pytest.importorskip("transformers")
    model = ours(style, "ctc")
    theirs = load_all(transformers.Wav2Vec2ForCTC(hf_config(style)), hf_names(model))
    wave_BS, samples_B = padded_waves()
    attention_mask = (torch.arange(wave_BS.shape[1]) < samples_B[:, None]).long()
    with torch.no_grad():
        want = theirs(wave_BS, attention_mask=attention_mask).logits
        got, frames_B = model(wave_BS, samples_B)
    valid = torch.arange(got.shape[1]) < frames_B[:, None]
    assert not valid.all()
    check(got[valid], want[valid])


@pytest.mark.parametrize("style", STYLES)
def test_pre_training_is_that_of_transformers(style: str) -> None:
    transformers = pytest.importorskip("transformers")
    model = ours(style, "pretrain")
    theirs = load_all(transformers.Wav2Vec2ForPreTraining(hf_config(style)), hf_names(model))
    torch.manual_seed(2)
    wave_BS, key_B = torch.randn(2, 16_000), mix(torch.arange(2))
    mask_BT = equalise(span_mask(key_B, torch.tensor([49, 49]), 49, 0.65, 5), key_B)
    masked = int(mask_BT[0].sum())
    index_BM = mask_BT.nonzero()[:, 1].view(2, masked)
    negative_BMN = negatives(key_B, masked, 20)
    # theirs counts frames of all rows, masked or not; what stands at the others is not used
    flat = torch.zeros(2, 49, 20, dtype=torch.long)
    for b in range(2):
        flat[b, index_BM[b]] = index_BM[b][negative_BMN[b]] + 49 * b
    with torch.no_grad():
        want = theirs(wave_BS, mask_time_indices=mask_BT, sampled_negative_indices=flat)
        got = model(wave_BS, mask_BT, negative_BMN, masked=masked)
    loss, _ = contrastive_loss(got.logits_BMN)
    check(loss, want.contrastive_loss)
    check(got.code_perplexity, want.codevector_perplexity)  # in evaluation theirs is of the codes
    c_BTD, q_BTD = want.projected_states, want.projected_quantized_states
    similarity = torch.cosine_similarity(c_BTD, q_BTD, dim=-1)[mask_BT].view(2, masked)
    check(got.logits_BMN[..., 0], similarity / 0.1)
    assert torch.isneginf(got.logits_BMN).any()  # seven entries a group: some negatives are equal


@pytest.mark.parametrize("style", STYLES)
def test_layers_and_logits_are_those_of_torchaudio(style: str) -> None:
    models = pytest.importorskip("torchaudio.models")
    sizes, model = STYLES[style], ours(style, "ctc")
    theirs = models.wav2vec2_model(
        extractor_mode="layer_norm" if sizes.extractor_norm == "layer" else "group_norm",
        extractor_conv_layer_config=list(sizes.conv_layers),
        extractor_conv_bias=sizes.conv_bias,
        encoder_embed_dim=sizes.width,
        encoder_projection_dropout=0.0,
        encoder_pos_conv_kernel=sizes.position_kernel,
        encoder_pos_conv_groups=sizes.position_groups,
        encoder_num_layers=sizes.layers,
        encoder_num_heads=sizes.heads,
        encoder_attention_dropout=0.0,
        encoder_ff_interm_features=sizes.ffn_width,
        encoder_ff_interm_dropout=0.0,
        encoder_dropout=0.0,
        encoder_layer_norm_first=sizes.norm_first,
        encoder_layer_drop=0.0,
        aux_num_out=32,
    )
    load_all(theirs, torchaudio_names(model))
    wave_BS, samples_B = padded_waves()
    names = [str(i + 1) for i in range(sizes.layers)]
    with torch.no_grad():
        want, _ = theirs.extract_features(wave_BS)
        context: Any = model.wav2vec2(wave_BS, layers=names)
        for name, layer in zip(names, want, strict=True):
            check(context.layers[name], layer)
        check(model(wave_BS)[0], theirs(wave_BS)[0])
        logits, lengths = theirs(wave_BS, samples_B)
        got, frames_B = model(wave_BS, samples_B)
    assert torch.equal(frames_B, lengths)
    valid = torch.arange(got.shape[1]) < frames_B[:, None]
    check(got[valid], logits[valid])


def test_base_and_large_are_the_networks_of_transformers_by_their_counts() -> None:
    transformers = pytest.importorskip("transformers")
    with torch.device("meta"):
        theirs = transformers.Wav2Vec2Model(transformers.Wav2Vec2Config())
        mine = Wav2Vec2(Architecture())
    assert sum(p.numel() for p in theirs.parameters()) == sum(p.numel() for p in mine.parameters())
