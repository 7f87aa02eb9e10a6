"""The two objectives: contrastive pre-training and CTC.

Goes in: a model and a batch. Goes out: ``Loss``. Both draw what is random about a row from the
row's key, and what is random about a micro-batch from the bin's.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from w2vtool.batches import Batch
from w2vtool.decoder.greedy import greedy
from w2vtool.losses import (
    Loss,
    contrastive_loss,
    ctc_loss,
    diversity_loss,
    feature_penalty,
)
from w2vtool.manifest import Manifest
from w2vtool.model.heads import CtcModel, PretrainModel
from w2vtool.model.masking import gumbel, negatives, uniform
from w2vtool.model.quantizer import temperature
from w2vtool.schema import ObjectiveConfig
from w2vtool.score import letter_errors, word_errors
from w2vtool.text import Case, normalize
from w2vtool.tokens import Tokens

LAYER_DROP = 6  # purpose of the hash that drops layers; masking.py has 1 to 5, batches.py 7


def skipped_blocks(key: int, blocks: int, probability: float) -> list[bool]:
    """Which Transformer blocks LayerDrop skips in this micro-batch: the same on every process."""
    if not probability:
        return []
    return (uniform(torch.tensor([key]), LAYER_DROP, blocks)[0] < probability).tolist()


def one_by_one(model: CtcModel, wave_BS: Tensor, samples_B: Tensor) -> tuple[Tensor, Tensor]:
    """Logits ``[B, T, V]`` and frames per row, each row computed without its padding.

    Padding changes what a group-norm model says (docs/exchange.md has figures), so a validation
    that pads would choose its best step by other errors than ``decode`` makes.
    """
    rows = zip(wave_BS, samples_B.tolist(), strict=True)
    logits = [model(wave_S[None, :samples])[0][0] for wave_S, samples in rows]
    frames_B = torch.tensor([len(row) for row in logits], device=wave_BS.device)
    return nn.utils.rnn.pad_sequence(logits, batch_first=True), frames_B


@dataclass(frozen=True)
class Contrastive:
    """Contrastive loss + diversity loss + feature penalty (paper section 3.2).

    The two extra terms are means, weighted by the number of masked frames, so that the whole is a
    sum that is divided by that number once (fairseq's ``sample_size``).
    """

    config: ObjectiveConfig
    layer_drop: float = 0.0

    @property
    def chance(self) -> float:
        """The contrastive loss of guessing, ln(1 + K)."""
        return math.log1p(self.config.negatives)

    def __call__(self, model: nn.Module, batch: Batch, step: int) -> Loss:
        """The loss of one micro-batch. In evaluation: no Gumbel noise, no LayerDrop."""
        assert isinstance(model, PretrainModel)
        assert batch.mask_BT is not None
        config, sizes = self.config, model.wav2vec2.architecture
        noise = None
        if model.training:
            groups, entries = sizes.codebook_groups, sizes.codebook_entries
            noise = gumbel(batch.key_B, batch.masked, groups, entries)
        output = model(
            batch.wave_BS,
            batch.mask_BT,
            negatives(batch.key_B, batch.masked, config.negatives),
            masked=batch.masked,
            temperature=temperature(step, *config.gumbel),
            noise_MGE=noise,
            logit_temperature=config.logit_temperature,
            gradient_scale=config.feature_gradient,
            skip=skipped_blocks(batch.key, sizes.layers, self.layer_drop if model.training else 0),
        )
        count = batch.masked * len(batch.wave_BS)
        contrastive, right = contrastive_loss(output.logits_BMN)
        codes = sizes.codebook_groups * sizes.codebook_entries
        diversity = diversity_loss(output.prob_perplexity, codes) * count
        total = contrastive + config.diversity_weight * diversity
        parts = {"contrastive": contrastive.detach(), "diversity": diversity.detach()}
        if config.penalty_weight:
            penalty = feature_penalty(output.conv_BTC) * count
            total = total + config.penalty_weight * penalty
            parts["penalty"] = penalty.detach()
        return Loss(
            total,
            count,
            {**parts, "accuracy": right},
            {
                "code_perplexity": output.code_perplexity,
                "prob_perplexity": output.prob_perplexity.detach(),
            },
        )


@dataclass(frozen=True)
class Ctc:
    """CTC over letters or pieces; in evaluation also greedy error counts."""

    tokens: Tokens
    manifest: Manifest  # of the validation split, for the references
    case: Case
    freeze_updates: int = 0
    gradient_scale: float = 0.0
    layer_drop: float = 0.0

    def prepare(self, model: nn.Module, step: int) -> None:
        """Before an update: thaw the context network when its time has come."""
        assert isinstance(model, CtcModel)
        frozen = step < self.freeze_updates
        model.wav2vec2.requires_grad_(not frozen)
        if not self.gradient_scale:
            model.wav2vec2.feature_encoder.requires_grad_(False)

    def __call__(self, model: nn.Module, batch: Batch, step: int) -> Loss:
        """Sum of the CTC losses; the count is the number of utterances (``sentence_avg``)."""
        assert isinstance(model, CtcModel)
        assert batch.target_BL is not None
        assert batch.labels_B is not None
        sizes = model.wav2vec2.architecture
        if batch.samples_B is not None and not model.training and sizes.extractor_norm == "group":
            logits, frames_B = one_by_one(model, batch.wave_BS, batch.samples_B)
        else:
            logits, frames_B = model(
                batch.wave_BS,
                batch.samples_B,
                mask_BT=batch.mask_BT,
                channel_mask_BD=batch.channel_mask_BD,
                gradient_scale=self.gradient_scale,
                freeze=model.training and step < self.freeze_updates,
                skip=skipped_blocks(
                    batch.key, sizes.layers, self.layer_drop if model.training else 0
                ),
            )
        if frames_B is None:
            frames_B = torch.full((len(logits),), logits.shape[1], device=logits.device)
        total = ctc_loss(logits, frames_B, batch.target_BL, batch.labels_B)
        if model.training:
            return Loss(total, len(logits))
        return Loss(total, len(logits), rates=self._errors(logits, frames_B, batch))

    def _errors(self, logits: Tensor, frames_B: Tensor, batch: Batch) -> dict[str, tuple[int, int]]:
        """Errors and reference lengths over the batch, of the greedy text; rows without one."""
        letters, words, silent = [0, 0], [0, 0], 0
        logp = logits.float().log_softmax(-1).cpu().numpy()
        for row, frames, index in zip(logp, frames_B.tolist(), batch.rows, strict=True):
            text = normalize(self.manifest.rows[index].text or "", self.case)
            said = greedy(row[:frames], self.tokens).text
            silent += not said
            for sums, found in (
                (letters, letter_errors(text, said)),
                (words, word_errors(text, said)),
            ):
                sums[0] += found.errors
                sums[1] += found.reference
        return {
            "uer": (letters[0], letters[1]),
            "wer": (words[0], words[1]),
            "empty": (silent, len(batch.rows)),
        }
