"""Words and phrases that a search should prefer, as an automaton beside the language model.

Goes in: phrases as sequences of word rows, each with a weight in nats. Goes out: ``Arcs``. Every
time that a phrase occurs among the words of a hypothesis, its weight is added; phrases that overlap
or lie within each other all count. One step costs the same for ten phrases and for a million.

A hypothesis in the middle of a phrase has part of the weight in advance, and pays it back where the
phrase breaks off, so that it is not pruned before the phrase is complete.

Source: Aho & Corasick 1975; NeMo's boosting tree has the same idea of scores on back-off arcs.
"""

# S states   A arcs   W words

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from w2vtool.decoder.arcs import Arcs


def automaton(phrases: Mapping[tuple[int, ...], float], words: int) -> Arcs:
    """The automaton of phrases over ``words`` rows; row 0 is in no phrase.

    State 0 is outside of all phrases. The score of an arc is the weight of what it completes, plus
    the change of what a hypothesis has in advance.
    """
    children: list[dict[int, int]] = [{}]
    weight, ahead = [0.0], [0.0]  # of phrases that end in a state; in advance there
    for phrase, value in phrases.items():
        state = 0
        for place, row in enumerate(phrase, start=1):
            if row not in children[state]:
                children[state][row] = len(children)
                children.append({})
                weight.append(0.0)
                ahead.append(0.0)
            state = children[state][row]
            if place < len(phrase):
                ahead[state] = max(ahead[state], value * place / len(phrase))
        weight[state] += value
    back = _suffixes(children, weight)
    first, word, score, target = [0], list(range(words)), [0.0] * words, [0] * words
    for row, child in children[0].items():
        score[row], target[row] = weight[child] + ahead[child], child
    for state, below in enumerate(children):
        for row, child in sorted(below.items()) if state else ():
            word.append(row)
            score.append(weight[child] + ahead[child] - ahead[state])
            target.append(child)
        first.append(len(word))
    in_advance = np.array(ahead)
    return Arcs(
        np.array(first),
        np.array(word, np.int32),
        np.array(score, np.float32),
        np.array(target, np.int32),
        (in_advance[back] - in_advance).astype(np.float32),
        np.array(back, np.int32),
        -in_advance.astype(np.float32),
    )


def _suffixes(children: list[dict[int, int]], weight: list[float]) -> list[int]:
    """The longest proper suffix of each state that is a state; adds its weight to the state's."""
    back = [0] * len(children)
    queue = list(children[0].values())
    for state in queue:  # grows: breadth first
        weight[state] += weight[back[state]]
        for row, child in children[state].items():
            shorter = back[state]
            while shorter and row not in children[shorter]:
                shorter = back[shorter]
            back[child] = children[shorter].get(row, 0)
            queue.append(child)
    return back
