"""The objectives: sums and counts that add up, and what is random, frozen or noisy when."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from w2vtool import batches
from w2vtool.architecture import Architecture
from w2vtool.batches import Batch, frames_of
from w2vtool.losses import Loss
from w2vtool.manifest import Manifest, Utterance
from w2vtool.model import masking
from w2vtool.model.heads import CtcModel, PretrainModel
from w2vtool.model.masking import equalise, mix, span_mask
from w2vtool.model.quantizer import temperature
from w2vtool.objectives import LAYER_DROP, Contrastive, Ctc, one_by_one, skipped_blocks
from w2vtool.schema import ObjectiveConfig
from w2vtool.tokens import Tokens

torch.set_num_threads(1)
TOKENS = Tokens()
SIZES = Architecture(
    conv_layers=tuple((16, k, s) for k, s in [(10, 5), *[(3, 2)] * 4, *[(2, 2)] * 2]),
    extractor_norm="layer",  # so that padding and neighbours change nothing
    conv_bias=True,
    width=32,
    layers=2,
    heads=4,
    ffn_width=64,
    norm_first=True,
    position_kernel=8,
    position_groups=4,
    codebook_entries=5,
    final_width=16,
)
# the diversity loss is of a micro-batch, as in fairseq, and so does not add up
ADDITIVE = ObjectiveConfig(negatives=7, diversity_weight=0.0)


def pretrain_model() -> PretrainModel:
    torch.manual_seed(0)
    return PretrainModel(SIZES)


def ctc_model() -> CtcModel:
    torch.manual_seed(0)
    return CtcModel(SIZES, len(TOKENS))


def ctc_objective(**options: Any) -> Ctc:
    rows = [Utterance(f"u{i}", f"{i}.wav", 1.0, text=text) for i, text in enumerate(TEXTS)]
    return Ctc(TOKENS, Manifest(Path("m.jsonl"), rows, ""), "upper", **options)


def pretrain_batch(rows: int = 4, samples: int = 8_000) -> Batch:
    torch.manual_seed(1)
    key_B = mix(torch.arange(rows))
    frames = int(frames_of(samples, SIZES))
    mask_BT = equalise(span_mask(key_B, torch.full((rows,), frames), frames, 0.65, 5), key_B)
    wave_BS = torch.randn(rows, samples)
    masked = int(mask_BT[0].sum())
    return Batch(wave_BS, None, key_B, 5, list(range(rows)), mask_BT=mask_BT, masked=masked)


TEXTS = ("SEE A", "B", "DO NOT")
LENGTHS = (16_000, 5_000, 12_345)


def ctc_batch(*rows: int) -> Batch:
    generator = torch.Generator().manual_seed(2)
    waves = [torch.randn(length, generator=generator) for length in LENGTHS]
    labels = [torch.tensor(TOKENS.encode(TEXTS[row])) for row in rows]
    return Batch(
        nn.utils.rnn.pad_sequence([waves[row] for row in rows], batch_first=True),
        torch.tensor([LENGTHS[row] for row in rows]),
        mix(torch.tensor(rows)),
        5,
        list(rows),
        target_BL=nn.utils.rnn.pad_sequence(labels, batch_first=True),
        labels_B=torch.tensor([len(label) for label in labels]),
    )


def some_rows(batch: Batch, rows: slice) -> Batch:
    """A smaller micro-batch of the same utterances."""
    cut = {k: v[rows] for k, v in vars(batch).items() if isinstance(v, Tensor)}
    return replace(batch, **cut, rows=batch.rows[rows])


def accumulated(
    model: nn.Module, objective: Any, parts: list[Batch]
) -> tuple[float, int, dict[str, Tensor]]:
    """Loss and gradients over micro-batches as the trainer makes them: summed, divided once."""
    model.zero_grad()
    losses: list[Loss] = [objective(model, part, 0) for part in parts]
    for loss in losses:
        loss.total.backward()
    count = sum(int(loss.count) for loss in losses)
    gradients = {n: p.grad / count for n, p in model.named_parameters() if p.grad is not None}
    return sum(loss.total.item() for loss in losses) / count, count, gradients


def check_equal(whole: Any, parts: Any) -> None:
    assert parts[0] == pytest.approx(whole[0], rel=1e-6)
    assert parts[1] == whole[1]
    assert set(parts[2]) == set(whole[2])
    flat = [torch.cat([g.flatten() for _, g in sorted(x[2].items())]) for x in (whole, parts)]
    assert (flat[1] - flat[0]).norm() <= 1e-6 * flat[0].norm()


# -- micro-batches -------------------------------------------------------------------------------


@pytest.mark.parametrize("training", [False, True])
def test_unequal_micro_batches_give_the_pre_training_gradient_of_one_batch(training: bool) -> None:
    model, batch = pretrain_model().train(training), pretrain_batch(4)
    objective = Contrastive(ADDITIVE)
    whole = accumulated(model, objective, [batch])
    parts = [some_rows(batch, slice(0, 1)), some_rows(batch, slice(1, 4))]
    check_equal(whole, accumulated(model, objective, parts))
    assert whole[1] == 4 * batch.masked


def test_unequal_micro_batches_give_the_ctc_gradient_of_one_batch() -> None:
    model, objective = ctc_model(), ctc_objective(gradient_scale=1.0)
    whole = accumulated(model, objective, [ctc_batch(0, 1, 2)])
    check_equal(whole, accumulated(model, objective, [ctc_batch(1), ctc_batch(0, 2)]))
    assert whole[1] == 3


def test_a_mean_per_micro_batch_would_not_be_the_same() -> None:
    # that the tests above can fail: fairseq's and our sum is not the mean of means
    model, objective = ctc_model(), ctc_objective(gradient_scale=1.0)
    whole = accumulated(model, objective, [ctc_batch(0, 1, 2)])[0]
    means = [accumulated(model, objective, [part])[0] for part in (ctc_batch(1), ctc_batch(0, 2))]
    assert sum(means) / 2 != pytest.approx(whole, rel=1e-2)


# -- contrastive ---------------------------------------------------------------------------------


def test_the_total_is_the_weighted_sum_of_its_parts() -> None:
    model, batch = pretrain_model(), pretrain_batch()
    loss = Contrastive(ObjectiveConfig(negatives=7))(model, batch, 0)
    count = 4 * batch.masked
    parts = {name: value.item() for name, value in loss.parts.items()}
    assert loss.count == count
    assert set(parts) == {"contrastive", "diversity", "penalty", "accuracy"}
    want = parts["contrastive"] + 0.1 * parts["diversity"] + 10 * parts["penalty"]
    assert loss.total.item() == pytest.approx(want, rel=1e-5)
    perplexity = loss.means["prob_perplexity"].item()
    assert parts["diversity"] == pytest.approx(count * (10 - perplexity) / 10, rel=1e-4)
    latents = model.wav2vec2.encode(batch.wave_BS).conv_BTC
    assert parts["penalty"] == pytest.approx(count * latents.square().mean().item(), rel=1e-4)
    assert not any(v.requires_grad for v in (*loss.parts.values(), *loss.means.values()))


def test_a_penalty_of_weight_0_is_not_computed() -> None:
    config = ObjectiveConfig(negatives=7, penalty_weight=0.0)
    assert "penalty" not in Contrastive(config)(pretrain_model(), pretrain_batch(), 0).parts


def test_an_untrained_model_is_near_chance() -> None:
    loss = Contrastive(ObjectiveConfig(negatives=100))(pretrain_model(), pretrain_batch(), 0)
    assert loss.parts["contrastive"].item() / int(loss.count) == pytest.approx(
        math.log(101), rel=0.25
    )


@pytest.mark.parametrize("training", [False, True])
def test_noise_and_temperature_of_the_update_are_for_training_only(training: bool) -> None:
    model, batch, seen = pretrain_model().train(training), pretrain_batch(), []
    model.quantizer.register_forward_pre_hook(lambda _, args: seen.append(args[1:]))
    objective = Contrastive(ADDITIVE)
    steps = (0, 50_000, 50_000, 400_000)
    for step in steps:
        objective(model, batch, step)
    assert [temp for temp, _ in seen] == [temperature(n, 2.0, 0.5, 0.999995) for n in steps]
    for _, noise in seen:
        assert (noise is not None) == training
    if training:
        assert seen[0][1].shape == (4 * batch.masked, 2, 5)
        assert torch.equal(seen[0][1], seen[1][1])  # from the keys, not from a generator


def test_the_same_batch_gives_the_same_loss_whatever_the_random_state() -> None:
    model, batch, objective = pretrain_model(), pretrain_batch(), Contrastive(ADDITIVE, 0.5)
    losses = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        losses.append(objective(model, batch, 0).total.item())
    assert losses[0] == losses[1]
    other = replace(batch, key_B=batch.key_B + 1)
    assert objective(model, other, 0).total.item() != losses[0]


def test_the_gradient_on_the_convolutions_is_scaled_as_configured() -> None:
    model, batch = pretrain_model(), pretrain_batch()
    weight = model.wav2vec2.feature_encoder.layers[0].conv.weight

    def gradient(scale: float) -> Tensor:
        config = ADDITIVE.model_copy(update={"feature_gradient": scale, "penalty_weight": 0.0})
        return torch.autograd.grad(Contrastive(config)(model, batch, 0).total, weight)[0]

    torch.testing.assert_close(gradient(0.1), 0.1 * gradient(1.0))


# -- LayerDrop -----------------------------------------------------------------------------------


def test_layer_drop_skips_this_share_of_the_blocks_by_the_key_alone() -> None:
    skips = [skipped_blocks(int(key), 12, 0.05) for key in mix(torch.arange(2_000)).tolist()]
    share = sum(map(sum, skips)) / (2_000 * 12)
    assert share == pytest.approx(0.05, abs=4.5 * math.sqrt(0.05 * 0.95 / 24_000))
    assert skipped_blocks(77, 12, 0.5) == skipped_blocks(77, 12, 0.5)
    assert skipped_blocks(77, 12, 0.0) == []


@pytest.mark.parametrize("kind", ["pretrain", "ctc"])
def test_layer_drop_is_for_training_only(kind: str) -> None:
    ran: list[int] = []
    model: Any = pretrain_model() if kind == "pretrain" else ctc_model()
    objective: Any = (
        Contrastive(ADDITIVE, 0.99) if kind == "pretrain" else ctc_objective(layer_drop=0.99)
    )
    batch = pretrain_batch() if kind == "pretrain" else ctc_batch(0)
    for i, block in enumerate(model.wav2vec2.context.blocks):
        block.register_forward_pre_hook(lambda *_, i=i: ran.append(i))
    objective(model, batch, 0)
    assert ran == []
    with torch.no_grad():
        objective(model.eval(), batch, 0)
    assert ran == [0, 1]


def test_no_two_purposes_share_a_stream() -> None:
    names = ("SPANS", "EQUALISE", "CHANNELS", "NEGATIVES", "GUMBEL")
    purposes = [getattr(masking, name) for name in names] + [LAYER_DROP, batches.CROP]
    assert len(set(purposes)) == 7


# -- CTC -----------------------------------------------------------------------------------------


def trained(model: CtcModel, objective: Ctc, step: int) -> set[str]:
    """The parts of the model that an update at this step moves."""
    model.zero_grad()
    model.requires_grad_(True)
    objective.prepare(model, step)
    objective(model, ctc_batch(0, 1), step).total.backward()
    moved = {n for n, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    return {
        "convolutions" if ".feature_encoder." in name else name.partition(".")[0] for name in moved
    }


def test_only_the_head_is_trained_until_the_network_is_thawed_and_the_convolutions_never() -> None:
    model, objective = ctc_model(), ctc_objective(freeze_updates=10)
    assert trained(model, objective, 0) == {"head"}
    assert trained(model, objective, 9) == {"head"}
    assert trained(model, objective, 10) == {"head", "wav2vec2"}
    everything = ctc_objective(gradient_scale=1.0)
    assert trained(model, everything, 0) == {"head", "wav2vec2", "convolutions"}


@pytest.mark.parametrize(("step", "frozen"), [(0, True), (10, False)])
def test_what_is_frozen_asks_for_no_gradient_so_that_weight_decay_spares_it(
    step: int, frozen: bool
) -> None:
    model = ctc_model()
    ctc_objective(freeze_updates=10).prepare(model, step)
    asking = {name for name, p in model.named_parameters() if p.requires_grad}
    assert {"head.weight", "head.bias"} <= asking
    assert not any(".feature_encoder." in name for name in asking)
    assert ("wav2vec2.context.norm.weight" in asking) is not frozen


def test_a_frozen_network_builds_no_graph() -> None:
    model = ctc_model()
    seen: list[Tensor] = []
    model.head.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    for freeze in (True, False):
        logits, _ = model(torch.randn(1, 4_000), freeze=freeze)
        assert logits.requires_grad
    assert [x.requires_grad for x in seen] == [False, True]


def test_ctc_counts_utterances_and_sums_their_losses() -> None:
    model, objective = ctc_model().eval(), ctc_objective()
    with torch.no_grad():
        together = objective(model, ctc_batch(0, 1, 2), 0)
        alone = [objective(model, ctc_batch(row), 0).total.item() for row in range(3)]
    assert together.count == 3
    assert together.total.item() == pytest.approx(sum(alone), rel=1e-5)


class Saying(CtcModel):
    """A model that says these texts, one frame a letter and a blank after each."""

    def __init__(self, *texts: str) -> None:
        super().__init__(SIZES, len(TOKENS))
        self.texts = texts

    def forward(self, wave_BS: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor | None]:
        paths = [[x for i in TOKENS.encode(text) for x in (i, 0)] for text in self.texts]
        frames = torch.tensor([len(path) for path in paths])
        junk = 7  # what is said in padded frames must not count
        ids = torch.full((len(paths), int(frames.max())), junk)
        for row, path in zip(ids, paths, strict=True):
            row[: len(path)] = torch.tensor(path)
        return 9 * nn.functional.one_hot(ids, len(TOKENS)).float(), frames


def test_validation_counts_letter_and_word_errors_of_the_greedy_text() -> None:
    # SEE A → SEA A: one letter of 5, one word of 2; B → B; DO NOT → DO: 4 letters of 6, 1 word of 2
    objective = ctc_objective()
    loss = objective(Saying("SEA A", "B", "DO").eval(), ctc_batch(0, 1, 2), 0)
    assert loss.rates["wer"] == (2, 5)
    errors, letters = loss.rates["uer"]
    assert (errors, letters) == (1 + 0 + 4, 5 + 1 + 6)


def test_references_are_found_by_the_row_of_the_manifest() -> None:
    objective = ctc_objective()
    right = objective(Saying("DO NOT", "SEE A").eval(), ctc_batch(2, 0), 0)
    assert right.rates["wer"] == (0, 4)


def test_no_errors_are_counted_in_training() -> None:
    assert ctc_objective()(ctc_model().train(), ctc_batch(0), 0).rates == {}


def test_validation_of_a_group_norm_model_is_that_of_each_row_alone() -> None:
    """Padding would change what it says, and with it which step is the best one."""
    torch.manual_seed(0)
    sizes = SIZES.model_copy(update={"extractor_norm": "group", "norm_first": False})
    model, objective = CtcModel(sizes, len(TOKENS)).eval(), ctc_objective()
    batch = ctc_batch(0, 1, 2)
    assert batch.samples_B is not None
    assert len(set(batch.samples_B.tolist())) > 1
    with torch.no_grad():
        together = objective(model, batch, 0)
        apart = [objective(model, ctc_batch(row), 0) for row in (0, 1, 2)]
        padded, _ = model(batch.wave_BS, batch.samples_B)
    assert torch.allclose(together.total, sum(one.total for one in apart), rtol=1e-5)
    for name, (errors, reference) in together.rates.items():
        assert errors == sum(one.rates[name][0] for one in apart)
        assert reference == sum(one.rates[name][1] for one in apart)
    alone, frames_B = one_by_one(model, batch.wave_BS, batch.samples_B)
    valid = torch.arange(alone.shape[1]) < frames_B[:, None]
    assert (alone[valid] - padded[valid]).norm() > 0.05 * alone[valid].norm()  # what padding does
