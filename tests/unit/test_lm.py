"""Opening and querying language models, and what is none."""

from __future__ import annotations

import base64
import gzip
import logging
import os
import random
import zlib
from pathlib import Path

import pytest

from w2vtool.decoder.lm import LanguageModel, open_lm
from w2vtool.errors import DataError

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
    assert caught.value.where == str(path)
    assert caught.value.hint
    return caught.value.what


def test_missing_files_and_folders_are_refused(tmp_path: Path) -> None:
    assert refused(tmp_path / "none.arpa") == "no such language model"
    assert refused(tmp_path).startswith("cannot be read: ")


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
        (ARPA.replace("1=5", "1=6").encode(), "KenLM can read: Could not parse"),
        (ARPA.replace("-0.6\tA", "x\tA").encode(), "KenLM can read: Could not parse"),
        (ARPA.replace("-0.6\tA", "0.6\tA").encode(), "Positive log probability"),
        (ARPA.replace("A </s>", "A Z").encode("utf-16"), "not a language model: begins with"),
        (b"\\data\\\nngram 1=1\n\n\\1-grams:\n-1\tA\n\n\\end\\\n", "at least a bigram model"),
    ],
)
def test_what_is_no_language_model_is_refused(tmp_path: Path, content: bytes, what: str) -> None:
    (tmp_path / "lm").write_bytes(content)
    assert what in refused(tmp_path / "lm")


@pytest.mark.parametrize("kept", range(7, len(ARPA) - len("\n\\end\\\n"), 11))
def test_an_arpa_file_cut_anywhere_is_refused(tmp_path: Path, kept: int) -> None:
    (tmp_path / "cut.arpa").write_text(ARPA[:kept])
    refused(tmp_path / "cut.arpa")


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
