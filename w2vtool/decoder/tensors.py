"""A search space on a device, and language models that are asked with tensors.

Goes in: a ``Space``. Goes out: a ``Map`` of its arrays, and ``query`` functions from (state, word)
to (score, next state), for many pairs at once.
"""

# c pairs   N nodes   V tokens   W words

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from w2vtool.decoder.hotwords import Arcs
from w2vtool.decoder.ngram import UNKNOWN, LanguageModel
from w2vtool.decoder.search_space import Space

Query = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


class Map(NamedTuple):
    """Arrays of a Space that the search reads; int64 and float64."""

    look: Tensor
    depth: Tensor
    word_begin: Tensor
    node_words: Tensor
    landing: Tensor
    has_children: Tensor  # bool [N]
    lm_row: Tensor
    hot_row: Tensor
    child_keys: Tensor  # node * tokens + token of every child, ascending
    has_end: Tensor  # bool [N], whether a separator may follow
    is_letter: Tensor  # bool [V]


def to_map(space: Space, device: torch.device) -> Map:
    """Copy a Space to a device."""
    arrays = {name: getattr(space, name) for name in Map._fields if hasattr(space, name)}
    counts = (space.child_end - space.child_begin)[: space.first_root]
    parents = np.repeat(np.arange(len(counts)), counts)
    keys = parents * len(space.tokens) + space.token[1 : 1 + len(parents)]
    has_end = np.zeros(len(space.token), bool)
    if space.separator >= 0:
        has_end[parents[space.token[1 : 1 + len(parents)] == space.separator]] = True
    is_letter = np.zeros(len(space.tokens), bool)
    is_letter[space.letters] = True
    has_children = space.child_end > space.child_begin
    arrays |= {
        "has_children": has_children,
        "child_keys": keys,
        "has_end": has_end,
        "is_letter": is_letter,
    }
    return Map(**{name: _tensor(array, device) for name, array in arrays.items()})


def child(m: Map, node_c: Tensor, token_c: Tensor, tokens: int, first_root: int) -> Tensor:
    """The child of each node under a token, or -1; nodes off the trie have none."""
    if not len(m.child_keys):
        return torch.full_like(node_c, -1)
    node_c = torch.where(node_c >= first_root, 0, node_c)  # all roots have the same children
    key_c = node_c * tokens + token_c
    place_c = torch.searchsorted(m.child_keys, key_c).clamp_(max=len(m.child_keys) - 1)
    there_c = (node_c >= 0) & (m.child_keys[place_c] == key_c)
    return torch.where(there_c, place_c + 1, -1)  # the root is no child


def _tensor(array: np.ndarray, device: torch.device) -> Tensor:
    wide = {"i": np.int64, "f": np.float64, "b": np.bool_}[array.dtype.kind]
    return torch.from_numpy(np.ascontiguousarray(array, wide)).to(device)


def arcs_query(arcs: Arcs, device: torch.device) -> Query:
    """Queries of arcs.

    Why a search among all keys for each back-off: the pairs are few, and it is one call.
    """
    words = int(arcs.first[1])
    states = len(arcs.backoff)
    rounds, state_S = 0, np.arange(states)
    while state_S.any():
        state_S, rounds = arcs.back[state_S], rounds + 1
    state_A = np.repeat(np.arange(states), np.diff(arcs.first))
    keys = torch.from_numpy(state_A * words + arcs.word).to(device)
    score, target = (
        torch.from_numpy(arcs.score).to(device),
        torch.from_numpy(arcs.target).to(device),
    )
    backoff, back = (
        torch.from_numpy(arcs.backoff).to(device),
        torch.from_numpy(arcs.back).to(device),
    )

    def query(state_c: Tensor, word_c: Tensor) -> tuple[Tensor, Tensor]:
        total_c = torch.zeros(len(state_c), dtype=torch.float64, device=device)
        arc_c = word_c.clone()  # the empty history has every word
        open_c = state_c != 0
        for _ in range(rounds):
            key_c = state_c * words + word_c
            place_c = torch.searchsorted(keys, key_c).clamp_(max=len(keys) - 1)
            found_c = open_c & (keys[place_c] == key_c)
            arc_c = torch.where(found_c, place_c, arc_c)
            open_c = open_c & ~found_c
            total_c += torch.where(open_c, backoff[state_c], 0.0)
            state_c = torch.where(open_c, back[state_c].long(), state_c)
            open_c = open_c & (state_c != 0)
        return total_c + score[arc_c], target[arc_c].long()

    return query


@dataclass
class Asked:
    """A language model without arrays; its states get numbers as they come up."""

    lm: LanguageModel
    words: Sequence[str]  # by the rows of a Space; the one after the last is <unk>
    states: list[Any] = field(default_factory=list)
    numbers: dict[Any, int] = field(default_factory=dict)
    known: dict[tuple[int, int], tuple[float, int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.states.append(self.lm.start())
        self.numbers[self.states[0]] = 0

    def step(self, state: int, row: int) -> tuple[float, int]:
        """log10 of a word, and the number of the state after it."""
        found = self.known.get((state, row))
        if found is None:
            word = self.words[row] if row < len(self.words) else UNKNOWN
            log10, following = self.lm.score(self.states[state], word)
            number = self.numbers.setdefault(following, len(self.states))
            if number == len(self.states):
                self.states.append(following)
            found = self.known[state, row] = (log10, number)
        return found

    def finals(self, state_n: np.ndarray) -> np.ndarray:
        """log10 P(</s>) in states."""
        return np.array([self.lm.final(self.states[state]) for state in state_n.tolist()])

    def query(self, state_c: Tensor, word_c: Tensor) -> tuple[Tensor, Tensor]:
        """``step`` of many pairs."""
        pairs = zip(state_c.tolist(), word_c.tolist(), strict=True)
        found = [self.step(state, word) for state, word in pairs]
        log10 = torch.tensor([pair[0] for pair in found], dtype=torch.float64)
        number = torch.tensor([pair[1] for pair in found], dtype=torch.int64)
        return log10.to(state_c.device), number.to(state_c.device)
