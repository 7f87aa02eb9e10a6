"""A language of tones that a random network can be taught in a second: for equal transcripts.

Goes in: a CTC model with random weights. Goes out: audio in which every letter is a tone, and the
same model with a head that transcribes it, by least squares on the network's output. Transcripts
of an untrained model would be ties, which any rounding breaks.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from w2vtool.audio import SAMPLE_RATE

LETTERS = 10
LETTER_SAMPLES, PAUSE_SAMPLES = 3200, 1600  # 200 and 100 ms
HOP, FIELD = 320, 400
FIRST_ROW = 5  # of the first letter among the tokens; 0 is the blank
RIDGE = 1e-3  # of the mean square of the features
SCALE = 10.0  # logits of what is said lie about this much over the rest


def speak(rows: int, seconds: float, seed: int) -> tuple[Tensor, Tensor]:
    """``wave_BS`` and the token of every frame ``[B, T]``; between letters there are pauses."""
    generator = torch.Generator().manual_seed(seed)
    samples = round(seconds * SAMPLE_RATE)
    period = LETTER_SAMPLES + PAUSE_SAMPLES
    count = -(-samples // period)
    letter_BL = torch.randint(LETTERS, (rows, count), generator=generator)
    hertz_BS = 200.0 * 1.35 ** letter_BL.repeat_interleave(period, 1)[:, :samples]
    place_S = torch.arange(samples)
    said_S = place_S % period < LETTER_SAMPLES
    wave_BS = 0.3 * torch.sin(2 * torch.pi * hertz_BS * place_S / SAMPLE_RATE) * said_S
    wave_BS += 0.01 * torch.randn(rows, samples, generator=generator)
    middle_T = torch.arange((samples - FIELD) // HOP + 1) * HOP + FIELD // 2
    token_BS = (FIRST_ROW + letter_BL).repeat_interleave(period, 1)[:, :samples] * said_S
    return wave_BS, token_BS[:, middle_T]


@torch.no_grad()
def teach(model: Any, seconds: float = 20.0) -> None:
    """Give ``model`` a head that transcribes tones."""
    model.eval()
    wave_BS, token_BT = speak(2, seconds, seed=1)
    x_FD = model.wav2vec2(wave_BS).x_BTD.flatten(0, 1).double()
    x_FD = torch.cat([x_FD, torch.ones(len(x_FD), 1)], 1)
    wanted_FV = SCALE * torch.nn.functional.one_hot(token_BT.flatten(), len(model.head.bias))
    gram_DD = x_FD.T @ x_FD
    gram_DD += RIDGE * gram_DD.diagonal().mean() * torch.eye(len(gram_DD))
    solution_DV = torch.linalg.solve(gram_DD, x_FD.T @ wanted_FV.double())
    model.head.weight.copy_(solution_DV[:-1].T)
    model.head.bias.copy_(solution_DV[-1])


def collapsed(token_T: Tensor) -> list[int]:
    """The text of the best token of each frame: repeats once, blanks not at all."""
    return [int(token) for token in token_T.unique_consecutive() if token]
