"""Losses as sums and counts, so that micro-batches, accumulation and ranks add up exactly.

Goes in: what the model gives. Goes out: ``Loss``; the trainer divides the summed gradients once by
the global count. Shape legend: B batch, M masked frames per row, N candidates, D width, T frames,
V vocabulary, L labels.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Loss:
    """A sum with its graph, and the number of things it is a sum over.

    ``parts`` are detached sums over the same count, ``means`` are detached values that are averaged
    over micro-batches as they are (perplexities), ``rates`` are (errors, reference length) pairs.
    """

    total: Tensor
    count: Tensor | int
    parts: dict[str, Tensor] = field(default_factory=dict)
    means: dict[str, Tensor] = field(default_factory=dict)
    rates: dict[str, tuple[int, int]] = field(default_factory=dict)


def contrastive_logits(
    c_BMD: Tensor, q_BMD: Tensor, code_BM: Tensor, negative_BMN: Tensor, temperature: float
) -> Tensor:
    """Cosine similarities ``[B, M, 1 + N]`` over ``temperature``, the positive first.

    A negative with the positive's codes is −inf (it *is* the positive). Why one
    matrix product: all similarities of a row are the ``[M, M]`` product of two normalised
    matrices; the candidates are scalars gathered from it, where ports build
    ``[1 + N, B, M, D]`` vectors.
    """
    c_BMD = F.normalize(c_BMD.float(), dim=-1, eps=1e-8)
    q_BMD = F.normalize(q_BMD.float(), dim=-1, eps=1e-8)
    similarity_BMM = c_BMD @ q_BMD.transpose(1, 2)
    own_1M1 = torch.arange(c_BMD.shape[1], device=c_BMD.device)[None, :, None]
    candidate_BMN = torch.cat([own_1M1.expand(len(c_BMD), -1, -1), negative_BMN], -1)
    logits_BMN = similarity_BMM.gather(2, candidate_BMN) / temperature
    candidate_code = code_BM[:, None, :].expand(-1, c_BMD.shape[1], -1).gather(2, candidate_BMN)
    same = candidate_code == code_BM[:, :, None]
    same[:, :, 0] = False
    return logits_BMN.masked_fill(same, float("-inf"))


def contrastive_loss(logits_BMN: Tensor) -> tuple[Tensor, Tensor]:
    """Sum of −log softmax of the positive, and how often it is the best candidate.

    Rows whose logits are all equal do not count as right (fairseq's accuracy: argmax 0 and not
    argmin 0).
    """
    logits = logits_BMN.flatten(0, 1)
    loss = F.cross_entropy(logits, logits.new_zeros(len(logits), dtype=torch.long), reduction="sum")
    right = (logits.argmax(-1) == 0) & (logits.argmin(-1) != 0)
    return loss, right.sum().detach()


def diversity_loss(prob_perplexity: Tensor, codes: int) -> Tensor:
    """Share of the codewords that is not in use, (G·V − perplexity) / (G·V)."""
    return (codes - prob_perplexity) / codes


def feature_penalty(conv_BTC: Tensor) -> Tensor:
    """Mean square of the latents (fairseq ``features_pen``)."""
    return conv_BTC.float().pow(2).mean()


def ctc_loss(logits_BTV: Tensor, frames_B: Tensor, target_BL: Tensor, labels_B: Tensor) -> Tensor:
    """Sum of the CTC losses of a batch, blank 0; an impossible row counts 0."""
    logp_TBV = logits_BTV.float().log_softmax(-1).transpose(0, 1)
    return F.ctc_loss(
        logp_TBV, target_BL, frames_B, labels_B, blank=0, reduction="sum", zero_infinity=True
    )
