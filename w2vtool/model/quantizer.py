"""The Gumbel product quantizer: latents → codewords, the targets of pre-training.

Shape legend: M masked frames of all rows, C conv channels, G groups, E entries, D codebook width.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn


class Quantized(NamedTuple):
    """Codewords and what the diversity loss and the metrics need."""

    q_MD: Tensor  # the chosen entries of all groups, side by side
    codes_M: Tensor  # one integer per frame that names the entries of all groups
    code_perplexity: Tensor  # of the argmax codes, sum over groups; no gradient
    prob_perplexity: Tensor  # of the mean softmax, sum over groups; carries the gradient


def temperature(update: int, start: float, floor: float, decay: float) -> float:
    """Gumbel temperature after ``update`` optimizer updates: 2.0 → 0.5 for BASE."""
    return max(start * decay**update, floor)


class Quantizer(nn.Module):
    """G groups of E entries, chosen by a linear layer and a hard Gumbel-softmax.

    Source: paper section 2 "Quantization module"; fairseq's ``GumbelVectorQuantizer``.
    """

    def __init__(self, channels: int, groups: int, entries: int, width: int) -> None:
        super().__init__()
        self.groups, self.entries = groups, entries
        self.codebook = nn.Parameter(torch.rand(groups, entries, width // groups))
        self.weights = nn.Linear(channels, groups * entries)
        nn.init.normal_(self.weights.weight)
        nn.init.zeros_(self.weights.bias)

    def forward(
        self, x_MC: Tensor, temperature: float = 1.0, noise_MGE: Tensor | None = None
    ) -> Quantized:
        """``[M, C]`` → codewords ``[M, D]``.

        With ``noise_MGE`` (Gumbel noise) the choice is a straight-through sample at
        ``temperature``; without, it is the argmax and carries no gradient to the choice.
        """
        logits_MGE = self.weights(x_MC).float().view(-1, self.groups, self.entries)
        best_MG = logits_MGE.argmax(-1)
        mean_GE = logits_MGE.softmax(-1).mean(0)
        if noise_MGE is None:
            chosen_MG = best_MG
            weights_MGE = self.one_hot(chosen_MG)
        else:
            soft_MGE = ((logits_MGE + noise_MGE) / temperature).softmax(-1)
            chosen_MG = soft_MGE.argmax(-1)
            weights_MGE = self.one_hot(chosen_MG) - soft_MGE.detach() + soft_MGE
        q_MGD = torch.einsum("mge,ged->mgd", weights_MGE, self.codebook.float())
        radix_G = self.entries ** torch.arange(self.groups, device=x_MC.device)
        return Quantized(
            q_MGD.flatten(1),
            (chosen_MG * radix_G).sum(-1),
            perplexity(self.one_hot(best_MG).mean(0)).detach(),
            perplexity(mean_GE),
        )

    def one_hot(self, code_MG: Tensor) -> Tensor:
        """Codes as float32 one-hot vectors ``[M, G, E]``; the library's would read the codes."""
        return (code_MG[..., None] == torch.arange(self.entries, device=code_MG.device)).float()


def perplexity(p_GE: Tensor) -> Tensor:
    """Σ over groups of exp(entropy); between G (collapse) and G·E (all entries in use)."""
    return torch.exp(-(p_GE * torch.log(p_GE + 1e-7)).sum(-1)).sum()
