"""Heads on the shared network: pre-training and CTC.

Goes in: waveforms, masks and negatives of a batch. Goes out: logits and what the losses need.
Shape legend: B batch, S samples, T frames, M masked frames per row, N candidates, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from w2vtool.architecture import Architecture, Dropouts
from w2vtool.losses import contrastive_logits
from w2vtool.model.encoder import Wav2Vec2
from w2vtool.model.kernels import Dropout
from w2vtool.model.quantizer import Quantizer


class PretrainOutput(NamedTuple):
    """What the pre-training losses are made of."""

    logits_BMN: Tensor  # the positive first
    conv_BTC: Tensor
    code_perplexity: Tensor
    prob_perplexity: Tensor


class Backbone(nn.Module):
    """The network without a head: what files without pre-training parts hold."""

    def __init__(self, architecture: Architecture, dropouts: Dropouts | None = None) -> None:
        super().__init__()
        self.wav2vec2 = Wav2Vec2(architecture, dropouts)


class PretrainModel(nn.Module):
    """The network with quantizer and projections: 95 M parameters for BASE.

    Source: fairseq's ``Wav2Vec2Model``: ``project_q`` and ``final_proj`` are plain linear layers.
    """

    def __init__(self, architecture: Architecture, dropouts: Dropouts | None = None) -> None:
        super().__init__()
        dropouts = dropouts or Dropouts()
        channels, width = architecture.conv_layers[-1][0], architecture.final_width
        self.wav2vec2 = Wav2Vec2(architecture, dropouts)
        self.feature_dropout = Dropout(dropouts.features)
        self.quantizer = Quantizer(
            channels, architecture.codebook_groups, architecture.codebook_entries, width
        )
        self.project_targets = nn.Linear(width, width)
        self.project_context = nn.Linear(architecture.width, width)

    def forward(
        self,
        wave_BS: Tensor,
        mask_BT: Tensor,
        negative_BMN: Tensor,
        *,
        masked: int,
        samples_B: Tensor | None = None,
        temperature: float = 1.0,
        noise_MGE: Tensor | None = None,
        logit_temperature: float = 0.1,
        gradient_scale: float = 1.0,
        skip: Sequence[bool] = (),
    ) -> PretrainOutput:
        """Contrastive logits of the masked frames.

        Every row of ``mask_BT`` has the same number of masked frames, ``masked`` (it is passed so
        that the shape is known without asking the device). ``noise_MGE`` as in ``Quantizer``.
        """
        frames = self.wav2vec2.encode(wave_BS, samples_B, gradient_scale=gradient_scale)
        context = self.wav2vec2.contextualise(frames, mask_BT=mask_BT, skip=skip)
        batch = len(wave_BS)
        index_BM = mask_BT.to(torch.uint8).argsort(dim=1, descending=True, stable=True)[:, :masked]
        row_B1 = torch.arange(batch, device=index_BM.device)[:, None]
        target_MC = self.feature_dropout(frames.x_BTC)[row_B1, index_BM].flatten(0, 1)
        context_BMD = context.x_BTD[row_B1, index_BM]
        # float32 on CPUs also under bf16: how many frames are masked changes with every batch, and
        # oneDNN would prepare, and keep, bf16 kernels for each number
        with torch.autocast("cpu", enabled=False):
            quantized = self.quantizer(target_MC.float(), temperature, noise_MGE)
            q_BMD = self.project_targets(quantized.q_MD).view(batch, masked, -1)
            c_BMD = self.project_context(context_BMD.float())
            codes_BM = quantized.codes_M.view(batch, -1)
            logits_BMN = contrastive_logits(c_BMD, q_BMD, codes_BM, negative_BMN, logit_temperature)
        return PretrainOutput(
            logits_BMN, frames.conv_BTC, quantized.code_perplexity, quantized.prob_perplexity
        )


class CtcModel(nn.Module):
    """The network with a linear layer to the vocabulary (row 0 is the blank)."""

    def __init__(
        self, architecture: Architecture, vocabulary: int, dropouts: Dropouts | None = None
    ) -> None:
        super().__init__()
        dropouts = dropouts or Dropouts()
        self.wav2vec2 = Wav2Vec2(architecture, dropouts)
        self.final_dropout = Dropout(dropouts.final)
        self.head = nn.Linear(architecture.width, vocabulary)
        nn.init.xavier_uniform_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(
        self,
        wave_BS: Tensor,
        samples_B: Tensor | None = None,
        *,
        mask_BT: Tensor | None = None,
        channel_mask_BD: Tensor | None = None,
        gradient_scale: float = 0.0,
        freeze: bool = False,
        skip: Sequence[bool] = (),
    ) -> tuple[Tensor, Tensor | None]:
        """``[B, S]`` → logits ``[B, T, V]`` and valid frames per row.

        The feature encoder gets no gradient unless ``gradient_scale`` says so; with ``freeze`` the
        context network gets none either (fairseq ``freeze_finetune_updates``).
        """
        with torch.set_grad_enabled(torch.is_grad_enabled() and not freeze):
            frames = self.wav2vec2.encode(wave_BS, samples_B, gradient_scale=gradient_scale)
            context = self.wav2vec2.contextualise(
                frames, mask_BT=mask_BT, channel_mask_BD=channel_mask_BD, skip=skip
            )
        # float32 also under autocast: in bf16 near ties of the logits would be ties
        with torch.autocast(wave_BS.device.type, enabled=False):
            logits_BTV = self.head(self.final_dropout(context.x_BTD).float())
        return logits_BTV, context.frames_B
