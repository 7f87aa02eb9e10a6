"""``lm train``, ``info``, ``perplexity`` and ``prune`` from the command line."""

from __future__ import annotations

import json
import math
import os
import random
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ngrams import assembled, log10, write_arpa

from w2vtool.decoder.lm import open_lm
from w2vtool.decoder.lm_train import train
from w2vtool.decoder.lmplz import estimate
from w2vtool.decoder.ngram import NGram

W2v = Callable[..., Any]
TEXT = "ONE TWO THREE\nONE TWO\nTWO THREE ONE\nSTOP\nGO ON\nGO\n" * 3 + "RARE WORDS COME ONCE\n"


def zipf_text(sentences: int, words: int) -> list[str]:
    draw = random.Random(0)
    odds = [1 / (n + 1) for n in range(words)]
    names = [f"W{n}" for n in range(words)]
    return [" ".join(draw.choices(names, odds, k=draw.randint(1, 9))) for _ in range(sentences)]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text(TEXT)
    return tmp_path


def test_a_folder_has_the_model_for_others_for_us_and_its_words(w2v: W2v, here: Path) -> None:
    done = w2v("lm", "train", "text.txt", "--order", "3", "--out", "lm", "--json")
    assert done.code == 0
    assert sorted(path.name for path in Path("lm").iterdir()) == [
        "lm.arpa.gz",
        "lm.npz",
        "words.txt",
    ]
    assert Path("lm/words.txt").read_text().split() == sorted(set(TEXT.split()))
    for name in ("lm", "lm/lm.npz", "lm/lm.arpa.gz"):
        model = open_lm(name)
        assert isinstance(model, NGram) and model.order == 3
        assert model.sentence(["ONE", "TWO"]) == pytest.approx(
            open_lm("lm").sentence(["ONE", "TWO"]), abs=1e-5
        )
    summary = json.loads(done.out)
    assert summary["words"] == 10 and summary["ngrams"]["1"] == 13


def test_orders_up_to_nine_can_be_trained_and_read(w2v: W2v) -> None:
    assert w2v("lm", "train", "text.txt", "--order", "9", "--out", "nine.arpa").code == 0
    assert open_lm("nine.arpa").order == 9
    done = w2v("lm", "train", "text.txt", "--order", "10", "--out", "ten.arpa")
    assert done.code == 2 and not Path("ten.arpa").exists()


def test_info_says_what_a_model_is(w2v: W2v) -> None:
    w2v("lm", "train", "text.txt", "--order", "2", "--out", "lm", "--case", "lower")
    facts = json.loads(w2v("lm", "info", "lm", "--json").out)
    assert facts["order"] == 2 and facts["case"] == "lower" and facts["words"] == 10
    assert facts["letters"] == "".join(sorted(set(TEXT.lower()) - set(" \n")))
    assert "1-grams" in w2v("lm", "info", "lm").out


def test_perplexity_is_that_of_the_definition(w2v: W2v) -> None:
    ngrams = train(TEXT.splitlines(), 2)
    write_arpa(ngrams, "lm.arpa")
    Path("held.txt").write_text("ONE GO\n\nSTOP NEVER\n")
    done = w2v("lm", "perplexity", "--lm", "lm.arpa", "held.txt", "--json")
    found = json.loads(done.out)
    sentences = [["ONE", "GO"], ["STOP", "NEVER"]]
    logs, missed = [], 0.0
    for words in sentences:
        history = "<s>"
        for word in [*words, "</s>"]:
            logs.append(log10(assembled(ngrams), (history,), word))
            missed += logs[-1] if word == "NEVER" else 0
            history = word
    assert found["perplexity"] == pytest.approx(10 ** (-math.fsum(logs) / 6), rel=1e-4)
    assert found["perplexity_without_unknown"] == pytest.approx(
        10 ** (-(math.fsum(logs) - missed) / 5), rel=1e-4
    )
    assert (found["sentences"], found["words"], found["unknown"]) == (2, 4, 1)
    assert "NEVER (1)" in done.err


def test_a_text_in_another_case_is_named(w2v: W2v) -> None:
    w2v("lm", "train", "text.txt", "--order", "2", "--out", "lm")
    Path("held.txt").write_text("one two\n")
    assert "in the case of the model" in w2v("lm", "perplexity", "--lm", "lm", "held.txt").err
    done = w2v("lm", "perplexity", "--lm", "lm", "held.txt", "--case", "upper", "--json")
    assert json.loads(done.out)["unknown"] == 0


def test_a_model_of_tokens_is_told_and_scores_text_in_its_tokens(w2v: W2v) -> None:
    Path("letters.txt").write_text("\n".join(["-", "|", *sorted({*TEXT} - set(" \n"))]) + "\n")
    words = ("text.txt", "--tokens", "letters.txt")
    assert w2v("lm", "train", *words, "--order", "3", "--out", "lm").code == 0
    alone = w2v("lm", "perplexity", "--lm", "lm", "text.txt").err
    assert "is one of tokens" in alone and "see --tokens" in alone and "--case" not in alone
    done = w2v("lm", "perplexity", "--lm", "lm", *words, "--json")
    summary = json.loads(done.out)
    assert summary["unknown"] == 0
    assert summary["words"] == len("|".join(TEXT.split()) + "|")


def test_an_empty_text_has_no_perplexity(w2v: W2v) -> None:
    w2v("lm", "train", "text.txt", "--order", "2", "--out", "lm")
    Path("held.txt").write_text("\n\n")
    done = w2v("lm", "perplexity", "--lm", "lm", "held.txt")
    assert done.code == 3 and "held.txt: no words in the text" in done.err


def test_a_pruned_model_is_smaller_and_reads_back(w2v: W2v) -> None:
    w2v("lm", "train", "text.txt", "--order", "3", "--out", "lm")
    found = json.loads(
        w2v("lm", "prune", "lm", "--threshold", "0.01", "--out", "small", "--json").out
    )
    assert found["after"][2] < found["before"][2] and found["after"][0] == found["before"][0]
    assert open_lm("small").order == open_lm("small/lm.arpa.gz").order == 3
    assert w2v("lm", "prune", "lm", "--threshold", "0", "--out", "none").code == 2


FAKE = """#!{python}
import sys
from pathlib import Path
from w2vtool.decoder import arpa_writer
from w2vtool.decoder.lm_train import read_lines, train
words = sys.argv
Path("called.txt").write_text(" ".join(words[1:]))
order = int(words[words.index("-o") + 1])
text, arpa = words[words.index("--text") + 1], words[words.index("--arpa") + 1]
if "FAIL" in Path(text).read_text():
    sys.exit("it is too hot")
made = train(read_lines([text]), order)
arpa_writer.write(made.words, made.tables(), Path(arpa))
"""


@pytest.fixture
def lmplz(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program of that name, in PATH."""
    (here / "bin").mkdir()
    program = here / "bin/lmplz"
    program.write_text(FAKE.format(python=sys.executable))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(here / "bin"))
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))


def test_lmplz_is_used_where_it_is_asked_for(w2v: W2v, lmplz: None) -> None:
    words = ("lm", "train", "text.txt", "--order", "3", "--prune", "0,0,1", "--out", "lm")
    done = w2v(*words, "estimator=lmplz")
    assert done.code == 0, done.err
    called = Path("called.txt").read_text()
    assert "-o 3" in called and called.count("--prune") == 1 and called.endswith("--prune 0 0 1")
    assert "--discount_fallback 0.5 1 1.5" in called
    assert open_lm("lm").order == 3 and Path("lm/words.txt").exists()
    assert not list(Path("lm").glob(".*"))


def test_small_texts_are_not_given_to_lmplz(w2v: W2v, lmplz: None) -> None:
    assert w2v("lm", "train", "text.txt", "--order", "2", "--out", "lm").code == 0
    assert not Path("called.txt").exists()


def test_what_lmplz_says_is_passed_on(w2v: W2v, lmplz: None) -> None:
    Path("text.txt").write_text("FAIL\n")
    done = w2v("lm", "train", "text.txt", "--out", "lm", "estimator=lmplz")
    assert done.code == 3 and "lmplz failed (it is too hot)" in done.err


def test_a_missing_lmplz_is_named(w2v: W2v, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    done = w2v("lm", "train", "text.txt", "--out", "lm", "estimator=lmplz")
    assert done.code == 2 and "no lmplz in PATH" in done.err


@pytest.mark.skipif(not shutil.which("lmplz"), reason="lmplz is not in PATH")
@pytest.mark.parametrize(
    "options",
    [("--order", "3"), ("--order", "3", "--prune", "0,0,1"), ("--order", "7"), ("--order", "1")],
)
def test_both_estimators_give_the_same_model(w2v: W2v, options: tuple[str, ...]) -> None:
    """On few sentences lmplz counts one n-gram an order otherwise: test_lm_against_lmplz.py."""
    odd = "Two\u00a0words\u200b <B> IT\u2019S\n\n" + "e\u0301\t\u00e9 it's\r\n"
    Path("text.txt").write_text(odd + "\n".join(zipf_text(3000, 300)))
    for estimator in ("numpy", "lmplz"):
        done = w2v(
            *("lm", "train", "text.txt", *options, "--case", "lower", "--out", estimator),
            f"estimator={estimator}",
        )
        assert done.code == 0, done.err
    ours, theirs = open_lm("numpy"), open_lm("lmplz")
    assert isinstance(ours, NGram) and isinstance(theirs, NGram)
    assert ours.words == theirs.words and ours.first.tolist() == theirs.first.tolist()
    assert ours.word.tolist() == theirs.word.tolist()
    assert theirs.log10 == pytest.approx(ours.log10, abs=3e-3)
    assert "it's" in ours.words and "it's" in Path("lmplz/words.txt").read_text()


@pytest.mark.parametrize("estimator", ["numpy", "lmplz"])
def test_an_interrupted_training_leaves_the_old_model(
    w2v: W2v, lmplz: None, monkeypatch: pytest.MonkeyPatch, estimator: str
) -> None:
    assert w2v("lm", "train", "text.txt", "--order", "2", "--out", "lm").code == 0
    before = {path.name: path.read_bytes() for path in Path("lm").iterdir()}

    def interrupt(self: NGram, path: Path) -> None:
        path.write_text("half")
        raise KeyboardInterrupt

    monkeypatch.setattr(NGram, "save", interrupt)
    words = ("lm", "train", "text.txt", "--order", "3", "--out", "lm", f"estimator={estimator}")
    assert w2v(*words).code == 130
    assert {path.name: path.read_bytes() for path in Path("lm").iterdir()} == before
    assert w2v("lm", "prune", "lm", "--out", "lm", "--threshold", "1").code == 130
    assert {path.name: path.read_bytes() for path in Path("lm").iterdir()} == before


def test_lmplz_is_ended_with_the_task(here: Path, lmplz: None) -> None:
    (here / "bin/lmplz").write_text("#!/bin/sh\necho $$ > pid\nexec /bin/sleep 100\n")
    scratch = here / "scratch"
    scratch.mkdir()

    def interrupt(step: int) -> None:
        if Path("pid").exists() and Path("pid").read_text().strip():
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        estimate(["A B"], 2, (), scratch, interrupt)
    with pytest.raises(ProcessLookupError):
        os.kill(int(Path("pid").read_text()), 0)


def test_a_training_that_fails_leaves_no_empty_folder(w2v: W2v) -> None:
    assert w2v("lm", "train", "gone.txt", "--out", "new").code == 3
    assert not Path("new").exists()
    Path("old").mkdir()
    assert w2v("lm", "train", "gone.txt", "--out", "old").code == 3
    assert Path("old").is_dir()


@pytest.mark.parametrize(
    ("out", "code"), [("text.txt", 2), ("text.txt/lm", 2), ("text.txt/lm.arpa", 2), ("x" * 300, 3)]
)
def test_a_name_that_cannot_be_written_is_no_bug(w2v: W2v, out: str, code: int) -> None:
    before = Path("text.txt").read_bytes()
    done = w2v("lm", "train", "text.txt", "--out", out)
    assert done.code == code and done.err.startswith("error: ") and out[:8] in done.err
    assert Path("text.txt").read_bytes() == before


def test_a_model_of_tokens_is_not_said_to_have_words(w2v: W2v) -> None:
    Path("letters.txt").write_text(
        "".join(f"{letter} 1\n" for letter in sorted(set(TEXT) | {"|"}) if letter.strip())
    )
    done = w2v("lm", "train", "text.txt", "--tokens", "letters.txt", "--out", "lm", "--order", "2")
    assert done.code == 0 and re.search(r"2-gram model of \d+ tokens", done.out), done.err


def test_thresholds_as_lmplz_writes_them_are_named(w2v: W2v) -> None:
    done = w2v("lm", "train", "text.txt", "--prune", "0", "0", "1", "--out", "lm")
    assert done.code == 2 and "--prune 0,0,1" in done.err
    assert not Path("lm").exists()
