"""What tests of beam searches share: emissions, and when two lists of hypotheses are the same."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from w2vtool.decoder.greedy import Hypothesis


def log_softmax(logits_TV: np.ndarray) -> np.ndarray:
    """Log-probabilities of every frame."""
    return logits_TV - np.log(np.exp(logits_TV).sum(axis=1, keepdims=True))


def same(found: Sequence[Hypothesis], other: Sequence[Hypothesis]) -> None:
    """Texts and times are equal; scores are to 1e-6, relative to those of frames of nothing."""
    for name in ("text", "words", "tokens"):
        assert [getattr(h, name) for h in found] == [getattr(h, name) for h in other]
    for ours, theirs in zip(found, other, strict=True):
        assert ours[1:4] == pytest.approx(theirs[1:4], abs=1e-6, rel=1e-12)
