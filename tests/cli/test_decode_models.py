"""Language models beside a network of letters or pieces: their units, and what does not fit."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import toys
import yaml

from w2vtool import emissions
from w2vtool.tokens import Tokens

W2v = Callable[..., Any]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def lines(path: str | Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]


def found(done: Any) -> list[dict[str, Any]]:
    assert done.code == 0, done.err
    return lines(json.loads(done.out)["hyp"])


def unsure(ids: list[int], tokens: Tokens, seed: int, doubt: float = 0.1) -> np.ndarray:
    """Log-probabilities of a network that hears each token once, and is not sure of any."""
    p_TV = np.random.default_rng(seed).uniform(doubt / 100, doubt, (2 * len(ids), len(tokens)))
    p_TV[np.arange(0, 2 * len(ids), 2), ids] += 1.0
    p_TV[np.arange(1, 2 * len(ids), 2), tokens.blank] += 1.0
    return np.log(p_TV / p_TV.sum(1, keepdims=True)).astype(np.float32)


def hear(
    monkeypatch: pytest.MonkeyPatch, ids: dict[str, list[int]], tokens: Tokens, doubt: float = 0.1
) -> None:
    """A network that hears these tokens in these utterances."""

    def emit(rows: Any, model: Any, **more: Any) -> Iterator[tuple[Any, np.ndarray]]:
        for seed, (_, row) in enumerate(rows):
            yield row, unsure(ids[row.id], tokens, seed, doubt)

    monkeypatch.setattr(emissions, "log_probabilities", emit)


def rows(folder: Path, texts: list[str]) -> Path:
    path = toys.corpus(folder, "m", len(texts))
    told = [{**line, "text": text} for line, text in zip(lines(path), texts, strict=True)]
    path.write_text("".join(json.dumps(row) + "\n" for row in told))
    return path


def test_a_natural_weight_is_one_of_log10_times_ln_10(
    w2v: W2v, tiny_ctc: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hear(monkeypatch, {"m-0": toys.TOKENS.encode("ONE GO")}, toys.TOKENS)
    heard = rows(tmp_path, ["ONE TWO"])
    (tmp_path / "text.txt").write_text("ONE TWO\nSTOP GO\nGO\n" * 4)
    assert w2v("lm", "train", "text.txt", "--order", "2", "--out", "lm").code == 0
    decode = ("decode", "--checkpoint", tiny_ctc, heard, "--lm", "lm", "--json")
    [natural] = found(w2v(*decode, "--lm-weight", "0.7", "--lm-units", "natural"))
    [plain] = found(w2v(*decode, "--lm-weight", str(0.7 * math.log(10))))
    assert natural["lm"] == plain["lm"] and natural["score"] == pytest.approx(plain["score"])
    assert found(w2v(*decode, "--lm-weight", "0.7"))[0]["score"] != pytest.approx(plain["score"])

    tune = ("tune-decode", "--checkpoint", tiny_ctc, heard, "--lm", "lm", "--trials", "1")
    assert w2v(*tune, "--lm-units", "natural", "--run-dir", "tuned").code == 0
    snippet = yaml.safe_load(Path("tuned/best.yaml").read_text())["decode"]["beam"]
    assert snippet["lm_units"] == "natural"
    assert w2v(*tune, "--run-dir", "plain").code == 0
    assert "lm_units" not in yaml.safe_load(Path("plain/best.yaml").read_text())["decode"]["beam"]


@pytest.fixture
def pieces(w2v: W2v, tmp_path: Path) -> Path:
    """A network over the pieces of a SentencePiece model that the tool trained."""
    (tmp_path / "text.txt").write_text("ONE TWO THREE\nSTOP GO\nGO ON NOW\nNO THREE\n" * 20)
    words = ("tokens", "train", "text.txt", "--kind", "sentencepiece", "--size", "24", "model=bpe")
    assert w2v(*words, "--out", "tokens.model").code == 0
    return toys.save(tmp_path / "pieces", "ctc", Tokens.from_sentencepiece("tokens.model"))


def drawn(text: str, tokens: Tokens) -> list[int]:
    """A spelling in single letters, wherever there are such."""
    found: list[int] = []
    for word in text.split():
        rest = f"▁{word}"
        while rest:
            piece = next(rest[:n] for n in range(1, len(rest) + 1) if rest[:n] in tokens.symbols)
            found.append(tokens.symbols.index(piece))
            rest = rest[len(piece) :]
    return found


@pytest.mark.parametrize("engine", ["numba", "torch"])
def test_a_network_of_pieces_writes_words_with_either_kind_of_model(
    w2v: W2v, pieces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, engine: str
) -> None:
    tokens = Tokens.from_sentencepiece("tokens.model")
    said = ["ONE TWO", "STOP NOON", "THREE"]
    spelled = {f"m-{n}": drawn(text, tokens) for n, text in enumerate(said)}
    assert spelled["m-0"] != tokens.encode("ONE TWO")
    hear(monkeypatch, spelled, tokens, doubt=1e-5)
    heard = rows(tmp_path, said)
    assert w2v("lm", "train", "text.txt", "--order", "2", "--out", "words").code == 0
    train = ("lm", "train", "text.txt", "--order", "6", "--tokens")
    assert w2v(*train, "tokens.model", "--out", "units").code == 0
    assert w2v(*train, pieces, "--case", "lower", "--out", "same").code == 0
    assert Path("same/words.txt").read_text() == Path("units/words.txt").read_text()
    decode = ("decode", "--checkpoint", pieces, heard, "--json", "--times", "--beam-engine", engine)
    for more in (("--lm", "words"), ("--lm", "units", "--search", "tokens", "--lm-weight", "0.5")):
        lists = found(w2v(*decode, *more))
        assert [line["text"] for line in lists] == said
        for line in lists:
            assert [word["word"] for word in line["words"]] == line["text"].split()
            ends = [time for word in line["words"] for time in (word["begin"], word["end"])]
            assert ends == sorted(ends)
    (tmp_path / "words.txt").write_text("ONE\nTWO\nSTOP\nNOON\nTHREE\n")
    closed = found(w2v(*decode, "--lexicon", "words.txt"))
    assert [line["text"] for line in closed] == said


@pytest.fixture
def models(w2v: W2v, pieces: Path, tmp_path: Path) -> None:
    """Of words in both cases, of letters, and of pieces."""
    for name, more in {
        "words": (),
        "lower": ("--case", "lower"),
        "letters": ("--tokens", "letters.txt"),
        "pieces.arpa": ("--tokens", "tokens.model"),
    }.items():
        (tmp_path / "letters.txt").write_text("\n".join(["-", "|", *"ABCDEFGHIJKLMNOPRSTUWZ"]))
        assert w2v("lm", "train", "text.txt", "--order", "3", *more, "--out", name).code == 0


BAD = {
    "lower case": ("both", ("--lm", "lower"), 3, ("is in lower case", "lm train --case upper")),
    "letters as words": ("both", ("--lm", "letters"), 3, ("letters or pieces, given as one of",)),
    "pieces as words": ("both", ("--lm", "pieces.arpa"), 3, ("letters or pieces, given as one",)),
    "words as tokens": (
        "both",
        ("--lm", "words", "--search", "tokens"),
        3,
        ("of words, and the search is over tokens", "--search open"),
    ),
    "letters for pieces": (
        "pieces",
        ("--lm", "letters", "--search", "tokens"),
        3,
        ("of letters, and the tokens are word pieces", "lm train --tokens"),
    ),
    "pieces for letters": (
        "letters",
        ("--lm", "pieces.arpa", "--search", "tokens"),
        3,
        ("of word pieces, and the tokens are letters", "lm train --tokens"),
    ),
    "a lexicon with empty and strange spellings": (
        "both",
        ("--lexicon", "bad.txt"),
        3,
        ("bad.txt:2: no spelling after 'TWO'", "bad.txt:3: no token for 'Ü'"),
    ),
    "hotwords": (
        "both",
        ("--search", "open", "--hotwords", "GO,TÜR"),
        3,
        ("hotwords that cannot come out", "'TÜR': no token for Ü", "same case"),
    ),
    "a lexicon and tokens": ("both", ("--lexicon", "ok.txt", "--search", "tokens"), 2, ("no use",)),
    "no lexicon": ("both", ("--search", "lexicon"), 2, ("needs a lexicon",)),
}


@pytest.mark.parametrize("case", BAD)
@pytest.mark.usefixtures("models")
def test_what_does_not_fit_is_named_with_the_way_out(
    w2v: W2v, tiny_ctc: Path, pieces: Path, tmp_path: Path, case: str
) -> None:
    (tmp_path / "ok.txt").write_text("ONE\n")
    (tmp_path / "bad.txt").write_text("ONE\nTWO\t\nTÜR\n")
    heard = rows(tmp_path, ["ONE TWO"])
    of, words, code, phrases = BAD[case]
    checkpoints = {"both": (tiny_ctc, pieces), "letters": (tiny_ctc,), "pieces": (pieces,)}[of]
    for checkpoint in checkpoints:
        done = w2v("decode", "--checkpoint", checkpoint, heard, *words)
        assert done.code == code, done.err
        said = " ".join(done.err.split())
        assert "Traceback" not in said and "hint" in said.lower()
        for phrase in phrases:
            assert phrase in said
