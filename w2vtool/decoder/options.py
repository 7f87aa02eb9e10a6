"""How a beam search searches and weighs."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from w2vtool.errors import ConfigError

Mode = Literal["lexicon", "open", "tokens"]


@dataclass(frozen=True)
class BeamOptions:
    """Scores and thresholds are in nats.

    Source: flashlight-text's LexiconDecoderOptions; there ``beam`` is ``beam_size``, and its
    ``beam_size_token`` counts tokens where ``token_threshold`` compares them with the frame's best.
    """

    beam: int = 50  # slots kept after each frame
    threshold: float = 18.0  # what is this much worse than the best is dropped
    token_threshold: float = 15.0  # tokens this much worse than the frame's best are not tried
    lm_weight: float = 2.0  # nats for one log10 unit
    word_score: float = 0.0  # of each word that is known; mode tokens: of each token
    sil_score: float = 0.0  # of each frame of "|"
    unk_score: float = -5.0  # open mode only, as the next one
    unk_letter_score: float = -1.0
    nbest: int = 1
    mode: Mode = "lexicon"
    merge: Literal["max", "logadd"] = "max"  # paths of one text: the best one, or their sum
    recombine: Literal["auto", "state", "history"] = "auto"  # auto: history for n-best lists
    collapse: float = 1.0  # frames after one of p(blank) above this, and above it too, are blank
    times: bool = False  # tell the frames of words and tokens

    def __post_init__(self) -> None:
        good = {
            "beam": self.beam >= 1,
            "nbest": self.nbest >= 1,
            "threshold": self.threshold > 0,
            "token_threshold": self.token_threshold >= 0,
            "collapse": 0 < self.collapse <= 1,
            "mode": self.mode in ("lexicon", "open", "tokens"),
            "merge": self.merge in ("max", "logadd"),
            "recombine": self.recombine in ("auto", "state", "history"),
        }
        for name in ("lm_weight", "word_score", "sil_score", "unk_score", "unk_letter_score"):
            good[name] = math.isfinite(getattr(self, name))
        wrong = [f"{name}={getattr(self, name)}" for name, fits in good.items() if not fits]
        if wrong:
            raise ConfigError(
                f"beam search options out of range: {', '.join(wrong)}",
                hint="beam and nbest are 1 or more, thresholds positive, weights and scores finite",
            )

    @property
    def by_history(self) -> bool:
        """Whether only hypotheses of the same words merge."""
        return self.recombine == "history" or (self.recombine == "auto" and self.nbest > 1)

    @property
    def summing(self) -> bool:
        """Whether the paths of one text are added up."""
        return self.merge == "logadd"
