"""A decoding job that is made up: text, a lexicon, and log-probabilities as a network's are.

Goes in: a ``Made`` of sizes. Goes out: a folder in the form that ``decoder.py --job`` takes, the
same on every machine. Words are random letters, the more frequent the shorter, and text is made of
phrases that come back, so that a 4-gram of it means something; in the standard size it has about
5.7 million n-grams. An utterance is spelled in frames of 20 ms, mostly blank, with letters that are
taken for others, lost and added, some frames surer than others. Nothing can be learnt from it about
errors of real networks; it is for speed, and where no job is at hand.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np

SYMBOLS = ("<pad>", "<s>", "</s>", "<unk>", "|", *"ETAONIHSRDLUMWCFGYPBVK'XJQZ")
BLANK, SEPARATOR, FIRST = 0, 4, 5
FREQUENCIES = 1.0 / np.arange(2, len(SYMBOLS) - FIRST + 2)  # of letters, by rank
FRAMES_A_SECOND, FRAMES_A_LETTER = 50, 3.5
SPOILT = 0.04  # letters that something happens to


class Made(NamedTuple):
    """How large the job is."""

    vocabulary: int = 32_000
    sentences: int = 295_000  # of the text
    phrases: int = 3_000_000
    dev: int = 40  # utterances
    test: int = 100
    seconds: float = 10.0  # of each utterance, about


def make(folder: Path, sizes: Made, seed: int = 1) -> Path:
    """Write the job; gives the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    words = vocabulary(rng, sizes.vocabulary)
    lines = text(rng, stock(rng, words, sizes.phrases))
    with (folder / "corpus.txt").open("w") as file:
        file.writelines(f"{line}\n" for line in islice(lines, sizes.sentences))
    entries = [f"{word}\t{' '.join(word)} |\n" for word in sorted(words)]
    (folder / "lexicon.txt").write_text("".join(entries))
    (folder / "vocab.json").write_text(json.dumps(SYMBOLS))
    for name, rows in (("dev", sizes.dev), ("test", sizes.test)):
        found = [utterance(rng, lines, sizes.seconds) for _ in range(rows)]
        lengths = np.array([len(logp_TV) for _, logp_TV in found])
        logp = np.zeros((rows, lengths.max(), len(SYMBOLS)), np.float32)
        for row, (_, logp_TV) in zip(logp, found, strict=True):
            row[: len(logp_TV)] = logp_TV
        np.savez_compressed(folder / f"{name}.npz", logp=logp, lens=lengths)
        (folder / f"{name}.txt").write_text("".join(f"{said}\n" for said, _ in found))
    return folder


def vocabulary(rng: np.random.Generator, size: int) -> list[str]:
    """Different words, the most frequent first."""
    letters = np.array(SYMBOLS[FIRST:])
    chances = FREQUENCIES / FREQUENCIES.sum()
    found: dict[str, None] = {}
    while len(found) < size:
        length = 2 + rng.poisson(min(6.0, 1.0 + len(found) / 50))
        found["".join(rng.choice(letters, length, p=chances))] = None
    return list(found)


def ranks(rng: np.random.Generator, many: int, size: int) -> np.ndarray:
    """Draws by Zipf's law of ranks below ``many``."""
    return (np.exp(rng.random(size) * np.log(many + 1)) - 1).astype(np.int64)


def stock(rng: np.random.Generator, words: Sequence[str], phrases: int) -> list[str]:
    """Phrases of one to five words, the most frequent first."""
    lengths = rng.integers(1, 6, phrases)
    drawn = iter(ranks(rng, len(words), int(lengths.sum())).tolist())
    return [" ".join(words[next(drawn)] for _ in range(length)) for length in lengths.tolist()]


def text(rng: np.random.Generator, phrases: Sequence[str]) -> Iterator[str]:
    """Sentences without end, of two to eight phrases each."""
    while True:
        drawn = ranks(rng, len(phrases), int(rng.integers(2, 9))).tolist()
        yield " ".join(phrases[rank] for rank in drawn)


def utterance(
    rng: np.random.Generator, lines: Iterator[str], seconds: float
) -> tuple[str, np.ndarray]:
    """What is said, and natural log-probabilities of its letters, float32 [T, V]."""
    said, letters = "", int(seconds * FRAMES_A_SECOND / FRAMES_A_LETTER)
    while len(said) < letters:
        said += next(lines) + " "
    said = said[: said.find(" ", letters - 1)]
    tokens = [SYMBOLS.index("|" if letter == " " else letter) for letter in said + " "]
    best: list[int] = []
    for token in tokens:
        best += [spoilt(rng, token)] * int(rng.integers(1, 3))
        best += [BLANK] * int(rng.integers(1, 4))
    logits = rng.normal(0.0, 1.0, (len(best), len(SYMBOLS)))
    logits[:, 1:SEPARATOR] -= 8.0  # specials are never heard
    sure = 3.0 + rng.gamma(2.0, 4.0, len(best))  # how much the best one stands out
    logits[np.arange(len(best)), best] += sure
    logits[np.arange(len(best)), BLANK] += 3.0
    logp = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    return said, logp.astype(np.float32)


def spoilt(rng: np.random.Generator, token: int) -> int:
    """The token, or now and then another letter or none."""
    if rng.random() > SPOILT:
        return token
    return BLANK if rng.random() < 0.3 else int(rng.integers(FIRST, len(SYMBOLS)))
