"""Opening and querying language models, and what is none."""

from __future__ import annotations

import base64
import gzip
import logging
import os
import random
import re
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from ngrams import write_arpa, zipf_text

from w2vtool.decoder import arpa, kenlm_binary
from w2vtool.decoder import lm as lms
from w2vtool.decoder.beam import BeamOptions, Search
from w2vtool.decoder.lm import LanguageModel, NGram, open_lm
from w2vtool.decoder.lm_train import train
from w2vtool.errors import DataError
from w2vtool.tokens import Tokens

ARPA = """\\data\\
ngram 1=5
ngram 2=4

\\1-grams:
-1.5\t<unk>
0\t<s>\t-0.3
-0.7\t</s>
-0.6\tA\t-0.2
-0.8\tB\t-0.1

\\2-grams:
-0.3\t<s> A
-0.5\tA B
-0.4\tB </s>
-0.9\tA </s>

\\end\\
"""
# the same model as KenLM's build_binary writes it (probing, little-endian), zlib and base64
BINARY = zlib.decompress(
    base64.b64decode(
        "eNrLzU0sUMjJVcgoKSmw0tfPzkhNTMtMzUnRS87P1U/OT0lVSMsvyk0sUShLLSrOzM9TMOViQIAGeyCxnxFI/AcCkAgj"
        "VIYJTB6wRxZjhdIsDKgAJF5Qp7jXsq0UrJa9ocv/EpeoOTOaOrZZf/aJ5gsxgfRz5Xz/WFv8IJuJAR84sB/kSBBr1syZ"
        "+4yNjUHuaZg1U9L+7BmffUAMpM/shanm+MSU0bLRWBjkp8aitx9qq2taQfrEznt9XleTJZGWlrYfl02abeYX9hxqVgCa"
        "t8+mNC/bjsGmGIj1gYQjgxMDAD+qURs="
    )
)


@pytest.fixture(params=["lm.arpa", "lm.arpa.gz", "lm.bin", "no-suffix"])
def lm(tmp_path: Path, request: pytest.FixtureRequest) -> LanguageModel:
    content = {"lm.arpa.gz": gzip.compress(ARPA.encode()), "lm.bin": BINARY}
    path = tmp_path / request.param
    path.write_bytes(content.get(request.param, ARPA.encode()))
    return open_lm(path)


def test_scores_are_those_in_the_file(lm: LanguageModel) -> None:
    score, after_a = lm.score(lm.start(), "A")
    assert score == pytest.approx(-0.3)
    score, after_b = lm.score(after_a, "B")
    assert score == pytest.approx(-0.5)
    assert lm.final(after_b) == pytest.approx(-0.4)
    assert lm.sentence(["A", "B"]) == pytest.approx(-1.2)
    assert lm.order == 2


def test_unseen_ngrams_back_off(lm: LanguageModel) -> None:
    _, after_b = lm.score(lm.start(), "B")
    assert lm.score(after_b, "A")[0] == pytest.approx(-0.1 - 0.6)
    assert lm.sentence([]) == pytest.approx(-0.3 - 0.7)


def test_unknown_words_are_scored_as_unk(lm: LanguageModel) -> None:
    assert (lm.knows("A"), lm.knows("C"), lm.knows("a"), lm.knows("<unk>")) == (True, *[False] * 3)
    assert lm.score(lm.start(), "C")[0] == pytest.approx(-0.3 - 1.5)


def test_states_of_the_same_words_are_one_key(lm: LanguageModel) -> None:
    after_a = lm.score(lm.start(), "A")[1]
    after_ba = lm.score(lm.score(lm.start(), "B")[1], "A")[1]
    assert after_a == after_ba != lm.start() == lm.start()
    assert len({after_a, after_ba, lm.start(), lm.start()}) == 2


def test_a_state_is_not_changed_by_scoring(lm: LanguageModel) -> None:
    start = lm.start()
    first = lm.score(start, "A")[0]
    lm.score(start, "B")
    assert lm.score(start, "A")[0] == first


def refused(path: Path) -> str:
    with pytest.raises(DataError) as caught:
        open_lm(path)
    assert str(caught.value.where).startswith(str(path))
    assert caught.value.hint
    return caught.value.what


def test_missing_files_and_folders_are_refused(tmp_path: Path) -> None:
    assert refused(tmp_path / "none.arpa") == "no such language model"
    assert refused(tmp_path) == "a folder without a model (lm.npz, lm.arpa.gz, lm.arpa)"


def test_a_folder_with_an_arpa_file_alone_is_a_model(tmp_path: Path) -> None:
    (tmp_path / "lm.arpa").write_text(ARPA)
    assert open_lm(tmp_path).path == tmp_path / "lm.arpa"


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"", "not a language model: the file is empty"),
        (b"A B C\nB C\n", "not a language model: begins with b'A B C"),
        (random.Random(0).randbytes(5000), "not a language model: begins with b'"),
        (b"RIFF\x24\x08\0\0WAVEfmt ", "not a language model: begins with b'RIFF"),
        (gzip.compress(b"A B C\n"), "not a language model: begins with b'A B C"),
        (gzip.compress(gzip.compress(ARPA.encode())), "not a language model: begins with"),
        (gzip.compress(ARPA.encode() * 50)[:-30], "cannot be unpacked: "),
        (BINARY[:200], "KenLM can read: Binary file has size 200"),
        (BINARY[:100], "not a language model that KenLM can read"),
        (BINARY[:60] + bytes(300), "not a language model that KenLM can read"),
        (ARPA.replace("A </s>", "A Z").encode("utf-16"), "not a language model: begins with"),
    ],
)
def test_what_is_no_language_model_is_refused(tmp_path: Path, content: bytes, what: str) -> None:
    (tmp_path / "lm").write_bytes(content)
    assert what in refused(tmp_path / "lm")


@pytest.mark.parametrize(
    ("old", "new", "line", "what"),
    [
        ("ngram 1=5", "ngram 1=6", 11, "not a 1-gram: ''"),
        ("ngram 1=5", "ngram 1=4", 10, "no \\2-grams: after 4 words, but '-0.8"),
        ("ngram 2=4", "ngram 2=5", 17, "not a 2-gram: ''"),
        ("ngram 2=4", "ngram 2=3", 16, "no \\end\\ after the last n-gram"),
        ("ngram 2=4", "ngram 3=4", 3, "not the count of 2-grams: 'ngram 3=4'"),
        ("ngram 2=4", "ngram 2=x", 3, "not the count of 2-grams"),
        ("-0.6\tA", "x\tA", 9, "not a number: 'x'"),
        ("-0.6\tA", "0.6\tA", 9, "log10 probability 0.6 of a 1-gram, above 0"),
        ("-0.6\tA", "nan\tA", 9, "log10 probability nan of a 1-gram"),
        ("-0.3\t<s> A", "-0.3\t<s> C", 13, "'C' is in an n-gram but no word of the model"),
        ("-0.8\tB", "-0.8\tA", 10, "the word 'A' twice"),
        ("-0.4\tB </s>", "-0.4\tB </s> A -1", 15, "not a 2-gram: '-0.4"),
        ("\\end\\", "", 18, "no \\end\\ after the last n-gram"),
        ("-0.4\tB </s>", "-0.4\tA B", 15, "a 2-gram twice"),
        ("A\t-0.2", "A\tnan", 9, "back-off weight nan of a 1-gram"),
        ("A\t-0.2", "A\tinf", 9, "back-off weight inf of a 1-gram"),
        ("ngram 2=4", f"ngram 2={10**15}", 12, "2-grams promised, more than fit in memory"),
    ],
)
def test_a_wrong_line_of_an_arpa_file_is_named(
    tmp_path: Path, old: str, new: str, line: int, what: str
) -> None:
    assert ARPA.count(old) == 1
    (tmp_path / "lm").write_text(ARPA.replace(old, new))
    with pytest.raises(DataError, match=re.escape(what)) as caught:
        open_lm(tmp_path / "lm")
    assert caught.value.where == f"{tmp_path / 'lm'}:{line}"


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text.replace("\n", "\r\n"),
        lambda text: text.replace("\t", " "),
        lambda text: text.replace("\t", " \t "),
        lambda text: "\ufeff" + text,
        lambda text: "made by hand\n\n# ngram 1=7\n" + text,
        lambda text: text.replace("\\2-", "\n\n\\2-").replace("ngram 1=5", "ngram  1 = 5"),
        lambda text: text.replace("\nngram 1", "\n\nngram 1") + "and more\n",
        lambda text: re.sub(r"(</s>|<unk>)\n", r"\1\t-99\n", text),
        lambda text: re.sub(r"(.*\t.* .*)\n", r"\1\t0\n", text),
        lambda text: text.replace("0\t<s>", "-99\t<s>"),
        lambda text: text.replace("0\t<s>", "-inf\t<s>"),
        lambda text: text.replace("-1.5\t<unk>\n", "").replace("1=5", "1=4"),
        lambda text: text.replace("<unk>", "<UNK>"),
    ],
)
def test_odd_but_legal_arpa_files_are_read(tmp_path: Path, change: Callable[[str], str]) -> None:
    for name, pack in (("lm.arpa", bytes), ("lm.gz", gzip.compress)):
        (tmp_path / name).write_bytes(pack(change(ARPA).encode()))
        assert open_lm(tmp_path / name).sentence(["A", "B"]) == pytest.approx(-1.2)
        assert open_lm(tmp_path / name).sentence(["B", "A"]) == pytest.approx(-1.1 - 0.7 - 0.9)


def test_lines_are_counted_from_the_top_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "lm").write_text("a header\n\n" + ARPA.replace("-0.6\tA", "x\tA"))
    with pytest.raises(DataError, match="not a number") as caught:
        open_lm(tmp_path / "lm")
    assert caught.value.where == f"{tmp_path / 'lm'}:11"


@pytest.mark.parametrize("mark", ["<s>", "</s>"])
def test_a_model_without_sentence_marks_is_refused(tmp_path: Path, mark: str) -> None:
    (tmp_path / "lm").write_text(ARPA.replace(mark, f"X{mark}X"))
    assert refused(tmp_path / "lm") == f"a model without {mark}"


def test_a_model_of_order_1_is_read(tmp_path: Path) -> None:
    path = tmp_path / "lm"
    path.write_text(ARPA.replace("ngram 2=4\n", "").partition("\\2-grams")[0] + "\\end\\\n")
    lm = open_lm(path)
    assert (lm.order, lm.sentence(["B", "C"])) == (1, pytest.approx(-0.8 - 1.5 - 0.7))


@pytest.mark.parametrize("kept", range(7, len(ARPA) - len("\n\\end\\\n"), 11))
def test_an_arpa_file_cut_anywhere_is_refused(tmp_path: Path, kept: int) -> None:
    (tmp_path / "cut.arpa").write_text(ARPA[:kept])
    refused(tmp_path / "cut.arpa")


def test_a_binary_that_lost_some_of_its_words_is_refused(tmp_path: Path) -> None:
    for kept in (-1, -3, -8):
        (tmp_path / "lm").write_bytes(BINARY[:kept])
        assert refused(tmp_path / "lm") == "a damaged KenLM binary: its words are cut off"


def test_a_binary_that_kenlm_crashes_on_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "lm").write_bytes(BINARY)
    crash = "\nimport os\nos.kill(os.getpid(), 11)"
    monkeypatch.setattr(kenlm_binary, "_TRIAL", kenlm_binary._TRIAL + crash)
    assert "KenLM crashes on it (signal 11)" in refused(tmp_path / "lm")


def test_kenlm_writes_nothing_and_stderr_works_afterwards(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "lm.arpa"
    lines = [line for line in ARPA.split("\n") if "<unk>" not in line]
    path.write_text("\n".join(lines).replace("1=5", "1=4"))
    with caplog.at_level(logging.WARNING):
        open_lm(path)
    path.write_text(ARPA[:100])
    refused(path)
    os.write(2, b"still here\n")
    assert capfd.readouterr() == ("", "still here\n")
    assert "has no <unk>" in caplog.text  # what KenLM would have said


@pytest.mark.parametrize(
    ("order", "prune"), [(2, ()), (3, ()), (3, (0, 0, 2)), (4, (0, 1, 1, 1)), (6, ())]
)
def test_scores_equal_kenlms_on_random_sentences(
    tmp_path: Path, order: int, prune: tuple[int, ...]
) -> None:
    write_arpa(train(zipf_text(400, 60, seed=0), order, prune), tmp_path / "lm.arpa")
    ours, kenlm = open_lm(tmp_path / "lm.arpa"), kenlm_binary.read(tmp_path / "lm.arpa")
    for line in [*zipf_text(2000, 70, seed=1), ""]:  # 10 words are unknown
        assert ours.sentence(line.split()) == pytest.approx(kenlm.sentence(line.split()), abs=1e-4)


def test_ngrams_whose_parts_were_pruned_are_scored_all_the_same(tmp_path: Path) -> None:
    path = tmp_path / "lm.arpa"
    write_arpa(train(zipf_text(200, 12, seed=0), 4), path)
    head, *sections = path.read_text().split("\n\\")
    rng = random.Random(3)
    thinned = []
    for section in sections[1:3]:  # 2- and 3-grams
        title, *lines = section.rstrip("\n").split("\n")
        kept = [line for line in lines if rng.random() < 0.7]
        thinned.append("\n".join([title, *kept, ""]))
        n = int(title[0])
        head = re.sub(rf"ngram {n}=\d+", f"ngram {n}={len(kept)}", head)
    path.write_text("\n\\".join([head, sections[0], *thinned, *sections[3:]]))
    lm = open_lm(path)
    by_definition = table_of(path)
    for line in zipf_text(300, 13, seed=1):
        words = line.split()
        expected = definition(by_definition, ["<s>", *words, "</s>"], 4)
        assert lm.sentence(words) == pytest.approx(expected, abs=1e-4)


def table_of(path: Path) -> dict[tuple[str, ...], tuple[float, float]]:
    found = {}
    for line in path.read_text().split("\n"):
        log10, _, rest = line.partition("\t")
        if rest:
            words, _, backoff = rest.partition("\t")
            found[tuple(words.split())] = float(log10), float(backoff or 0)
    return found


def definition(
    table: dict[tuple[str, ...], tuple[float, float]], words: list[str], order: int
) -> float:
    words = [word if (word,) in table else "<unk>" for word in words]
    total = 0.0
    for place in range(1, len(words)):
        for start in range(max(0, place - order + 1), place + 1):
            gram = tuple(words[start : place + 1])
            if gram in table:
                total += table[gram][0]
                break
            total += table.get(gram[:-1], (0.0, 0.0))[1]
    return total


def test_all_words_are_scored_at_once_as_one_by_one(tmp_path: Path) -> None:
    write_arpa(train(zipf_text(300, 30, seed=0), 4), tmp_path / "lm.arpa")
    lm = open_lm(tmp_path / "lm.arpa")
    assert isinstance(lm, NGram)
    state = lm.start()
    for word in ("w0", "w1", "w0", "w3"):
        log10_W = lm.distribution(state)
        assert log10_W == pytest.approx([lm.score(state, word)[0] for word in lm.words], abs=1e-6)
        assert lm.final(state) == pytest.approx(log10_W[lm.words.index("</s>")], abs=1e-6)
        state = lm.score(state, word)[1]


def test_a_saved_model_is_the_same_model(tmp_path: Path) -> None:
    write_arpa(train(zipf_text(100, 20, seed=0), 3), tmp_path / "lm.arpa")
    lm = open_lm(tmp_path / "lm.arpa")
    assert isinstance(lm, NGram)
    lm.save(tmp_path / "lm.npz")
    again = open_lm(tmp_path / "lm.npz")
    for line in zipf_text(50, 22, seed=1):
        assert again.sentence(line.split()) == lm.sentence(line.split())
    (tmp_path / "cut.npz").write_bytes((tmp_path / "lm.npz").read_bytes()[:-300])
    refused_what(tmp_path / "cut.npz", "not a saved language model")


def refused_what(path: Path, what: str) -> None:
    with pytest.raises(DataError, match=what):
        open_lm(path)


def test_a_large_model_is_kept_and_read_anew_when_its_file_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, cache = tmp_path / "lm.arpa", tmp_path / "cache"
    monkeypatch.setenv("W2VTOOL_CACHE", str(cache))
    monkeypatch.setattr(lms, "_CACHED_BYTES", 1)
    parsed = []
    read = arpa.read
    monkeypatch.setattr(arpa, "read", lambda *a: parsed.append(1) or read(*a))
    path.write_text(ARPA)
    first, second = open_lm(path), open_lm(path)
    assert len(parsed) == 1
    assert first.sentence(["A", "B"]) == second.sentence(["A", "B"]) == pytest.approx(-1.2)
    assert second.path == path
    path.write_text(ARPA.replace("-0.5\tA B", "-0.25\tA B"))
    assert open_lm(path).sentence(["A", "B"]) == pytest.approx(-0.95)
    next(cache.iterdir()).write_bytes(b"PK\x03\x04 damaged")
    assert open_lm(path).sentence(["A", "B"]) == pytest.approx(-0.95)
    assert len(parsed) == 3


def test_the_words_of_a_model_are_listed(lm: LanguageModel) -> None:
    assert list(lm.vocabulary()) == ["A", "B"]


def test_an_open_search_is_the_same_with_the_binary(tmp_path: Path) -> None:
    found = []
    for name, content in (("lm.arpa", ARPA.encode()), ("lm.bin", BINARY)):
        (tmp_path / name).write_bytes(content)
        tokens = Tokens(("-", "|", "A", "B"))
        options = BeamOptions(mode="open", nbest=5)
        search = Search(tokens, None, open_lm(tmp_path / name), options)
        logp_TV = np.log(np.random.default_rng(0).dirichlet(np.ones(4), 12))
        found.append([(h.text, round(h.score, 3)) for h in search(logp_TV)])
    assert found[0] == found[1]
    assert len(found[0]) == 5
