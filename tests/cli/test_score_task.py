"""``score``: totals, speakers, comparisons, alignments, forms of files, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

W2v = Callable[..., Any]
SAID = {"a-1": "ONE TWO THREE", "a-2": "FOUR", "b-1": "FIVE SIX"}


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def hyp(name: str, texts: dict[str, str], *, known: bool = True) -> str:
    rows = []
    for key, text in texts.items():
        told = {"reference": SAID[key], "speaker": key[0]} if known else {}
        rows.append({"id": key, "text": text, **told})
    path = Path(name)
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return name


def manifest(**changed: str) -> str:
    rows = [
        {"id": key, "audio": f"{key}.wav", "duration": 1.0, "text": text, "speaker": f"s{key[0]}"}
        for key, text in {**SAID, **changed}.items()
    ]
    Path("ref.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return "ref.jsonl"


@pytest.fixture
def one() -> str:
    return hyp("one.jsonl", {"a-1": "ONE TOO THREE", "a-2": "FOUR OR", "b-1": "SIX"})


def found(done: Any) -> dict[str, Any]:
    assert done.code == 0, done.err
    summary: dict[str, Any] = json.loads(done.out)
    return summary


def test_rates_have_counts_an_interval_and_speakers(w2v: W2v, one: str) -> None:
    summary = found(w2v("score", one, "--json"))
    [system] = summary["systems"]
    assert system["word_errors"] == {
        "substitutions": 1,
        "deletions": 1,
        "insertions": 1,
        "reference": 6,
    }
    assert system["wer"] == 0.5 and system["wer_95"][0] < 0.5 < system["wer_95"][1]
    assert system["letter_errors"]["reference"] == 13 + 4 + 8
    assert summary["speakers"] == {"a": [0.5], "b": [0.5]}


def test_the_worst_are_shown_word_below_word(w2v: W2v, one: str) -> None:
    out = w2v("score", one, "--worst", "2").out.splitlines()
    place = out.index("a-1: 1 of 3")
    assert out[place + 1 : place + 4] == [
        "REF: ONE TWO THREE",
        "HYP: ONE TOO THREE",
        "         S",
    ]
    assert out[place + 4 : place + 8] == [
        "a-2: 1 of 1",
        "REF: FOUR ***",
        "HYP: FOUR OR",
        "          I",
    ]
    assert not any(line.startswith("b-1") for line in out)
    assert "REF:" not in w2v("score", one, "worst=0").out


def test_long_alignments_are_broken(w2v: W2v) -> None:
    SAID["long"] = " ".join(["WORD"] * 40)
    try:
        name = hyp("long.jsonl", {"long": " ".join(["WORD"] * 39 + ["WARD"])})
        out = w2v("score", name).out.splitlines()
    finally:
        del SAID["long"]
    assert max(map(len, out)) <= 80
    assert sum(line.startswith("REF:") for line in out) == 3
    assert sum("WARD" in line for line in out if line.startswith("HYP:")) == 1


def test_systems_are_compared_on_the_same_utterances(w2v: W2v, one: str) -> None:
    two = hyp("run/hyp.jsonl", dict(SAID))
    summary = found(w2v("score", one, "run", "--json"))
    assert [system["wer"] for system in summary["systems"]] == [0.5, 0.0]
    [change] = summary["changes"]
    assert change["difference"] == -0.5 and (change["better"], change["worse"]) == (3, 0)
    assert change["p"] == pytest.approx(0.25, abs=0.02), "three signs of the same kind"
    assert summary["speakers"]["a"] == [0.5, 0.0]
    shown = w2v("score", one, two).out
    assert "change from one.jsonl" in shown and "WER 2" in shown and "run/hyp.jsonl" not in shown


def test_references_come_from_a_manifest_too(w2v: W2v) -> None:
    name = hyp("plain.jsonl", dict(SAID), known=False)
    assert w2v("score", name).code == 3
    done = w2v("score", name, "--references", manifest(), "--json")
    assert found(done)["systems"][0]["wer"] == 0
    assert found(done)["speakers"] == {"sa": [0.0], "sb": [0.0]}


def test_trn_is_written_and_read(w2v: W2v, one: str) -> None:
    made = found(w2v("score", one, "--trn", "trn", "--json"))
    assert Path("trn/ref.trn").read_text().splitlines()[0] == "ONE TWO THREE (a-1)"
    read = found(w2v("score", "trn/hyp.trn", "--references", "trn/ref.trn", "--json"))
    for key in ("wer", "cer", "wer_95", "word_errors"):
        assert read["systems"][0][key] == made["systems"][0][key]
    Path("x.trn").write_text(";; sclite's\n\n(HM) YES  (x y)\n (empty)\n")
    hyp("y.jsonl", {"a-1": "ONE"})
    assert found(w2v("score", "x.trn", "--references", "x.trn", "--json"))["utterances"] == 2


def test_case_is_brought_together_on_demand_and_said(w2v: W2v) -> None:
    name = hyp("low.jsonl", {key: text.lower() for key, text in SAID.items()})
    done = w2v("score", name)
    assert "100.00 %" in done.out and "3 but for their case; see --case" in done.err
    assert found(w2v("score", name, "--case", "upper", "--json"))["systems"][0]["wer"] == 0


def test_missing_hypotheses_are_named_or_count_as_deleted(w2v: W2v) -> None:
    name = hyp("few.jsonl", {"a-1": SAID["a-1"]}, known=False)
    done = w2v("score", name, "--references", manifest())
    assert done.code == 3 and "few.jsonl: nothing for 'a-2'" in done.err and "'b-1'" in done.err
    words = ("score", name, "--references", "ref.jsonl", "missing=delete", "--json")
    assert found(w2v(*words))["systems"][0]["word_errors"]["deletions"] == 3
    other = hyp("other.jsonl", {"a-1": "ONE"}, known=False)
    Path(other).write_text('{"id": "z", "text": ""}\n')
    done = w2v("score", other, "--references", "ref.jsonl")
    assert done.code == 3 and "no id in common" in done.err


def test_hypotheses_without_a_reference_are_left_out_and_said(w2v: W2v, one: str) -> None:
    with Path(one).open("a") as file:
        file.write('{"id": "new", "text": "ONE"}\n')
    done = w2v("score", one)
    assert done.code == 0 and "1 without a reference, like 'new'" in done.err


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("bad.jsonl", b'{"id": "a", "text": "A"}\n{"id": "b"}\nnope\n[1]\n', "bad.jsonl:2: no id"),
        ("bad.jsonl", b'{"id": "a", "text": "A"}\nnope\n', "bad.jsonl:2: not JSON"),
        ("bad.jsonl", b'{"id": "a", "text": "A"}\n' * 2, "bad.jsonl:2: 'a' a second time"),
        ("bad.jsonl", b"", "the file is empty"),
        ("bad.jsonl", b"\n", "no utterances"),
        ("bad.jsonl", b"\xff\xfe", "not UTF-8"),
        ("bad.trn", b"ONE TWO\n", "bad.trn:1: no (id)"),
        ("bad.tsv", b"a\tONE\n", "neither .jsonl nor .trn: bad.tsv"),
        ("gone.jsonl", None, "no such file"),
        ("gone-folder", None, "no such file"),
        ("empty-folder", None, "no such file"),
    ],
)
def test_bad_files_are_named(w2v: W2v, name: str, content: bytes | None, said: str) -> None:
    if content is not None:
        Path(name).write_bytes(content)
    elif "." not in name:
        Path(name).mkdir()
    done = w2v("score", name)
    assert done.code == 3 and said in done.err


def test_references_that_differ_are_named(w2v: W2v, one: str) -> None:
    two = hyp("two.jsonl", dict(SAID))
    text = Path(two).read_text().replace('"reference": "FOUR"', '"reference": "FORE"')
    Path(two).write_text(text)
    done = w2v("score", one, two)
    assert done.code == 3 and "a-2: 'FORE', and 'FOUR'" in done.err
    assert w2v("score", one, two, "--references", manifest()).code == 0


def test_a_folder_for_trn_that_can_be_none_is_refused_first(w2v: W2v, one: str) -> None:
    done = w2v("score", one, "--trn", one)
    assert done.code == 2 and "not a folder" in done.err and "--trn" in done.err
    assert done.out == ""


def test_nothing_is_left_behind(w2v: W2v, one: str) -> None:
    assert w2v("score", one).code == 0
    assert not Path("runs").exists()
