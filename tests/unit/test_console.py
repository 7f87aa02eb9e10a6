"""Results on stdout, words for people on stderr, bars on terminals only."""

from __future__ import annotations

import io
import sys
from typing import Any

import pytest

from w2vtool import console
from w2vtool.console import Console


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def test_results_go_to_stdout_and_words_to_stderr(capsys: Any) -> None:
    Console().result("result")
    Console().say("hello")
    assert capsys.readouterr() == ("result\n", "hello\n")
    Console(results=False).result("result")
    Console(results=False).table("t", ["a"], [["b"]])
    Console(people=False).say("hello")
    assert capsys.readouterr() == ("", "")


def test_a_table_is_aligned_text_where_there_is_no_terminal(capsys: Any) -> None:
    rows = [("greedy", 12.5, "–"), ("lexicon + LM", 3, "x"), ("漢字", "", "y")]
    Console().table("WER", ("search", "%", "note"), rows)
    assert capsys.readouterr().out.splitlines() == [
        "WER",
        "search           %  note",
        "greedy        12.5  –",
        "lexicon + LM     3  x",
        "漢字                y",
    ]


def test_a_table_without_rows_has_its_columns(capsys: Any) -> None:
    Console().table("", ("a", "b"), [])
    assert capsys.readouterr().out == "a  b\n"


def test_a_terminal_gets_a_drawn_table_with_the_text_as_it_is(monkeypatch: Any) -> None:
    out = Terminal()
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setenv("COLUMNS", "80")
    Console().table("WER", ("search", "%"), [("[red]greedy", 12.5)])
    assert "─" in out.getvalue() and "[red]greedy" in out.getvalue()


def test_a_narrow_terminal_shows_names_and_titles_in_one_piece(monkeypatch: Any) -> None:
    out = Terminal()
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setenv("COLUMNS", "60")
    Console().table("", ("recipe", "about"), [("recipes/librispeech.yaml", "words " * 40)])
    title = "errors of runs/demo/lexicon-lm/hyp.jsonl"
    Console().table(title, ("a", "b"), [("x" * 100, "2")])
    assert "recipes/librispeech.yaml" in out.getvalue() and title in out.getvalue()
    assert out.getvalue().count("x") >= 100 and "…" not in out.getvalue()


def test_progress_is_a_line_now_and_then_where_there_is_no_terminal(capsys: Any) -> None:
    with Console().progress(4000, "pretrain", "steps", every=0) as bar:
        bar.update(1000, loss="3.20", code_perplexity=210)
        bar.update(4000, loss="2.10")
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "pretrain: 1,000/4,000 steps  loss 3.20  code perplexity 210"
    assert lines[1] == "pretrain: 4,000/4,000 steps  loss 2.10" and len(lines) == 2


def test_quick_work_prints_one_last_line(capsys: Any) -> None:
    with Console().progress(100, "decode", "files") as bar:
        for done in range(101):
            bar.update(done)
    assert capsys.readouterr().err == "decode: 100/100 files\n"
    with Console().progress(100, "decode", "files"):
        pass
    assert capsys.readouterr().err == ""


def test_the_time_left_is_judged_by_this_process_only(capsys: Any, monkeypatch: Any) -> None:
    clock = iter([0.0, 0.0, 10.0, 20.0])
    monkeypatch.setattr(console.time, "monotonic", lambda: next(clock))
    with Console().progress(1000, "pretrain", "steps", every=0) as bar:
        bar.update(900)  # resumed here
        bar.update(910)
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.endswith("eta 2 min")  # 90 steps at one a second


def test_a_terminal_gets_a_bar_and_lines_above_it(monkeypatch: Any) -> None:
    err = Terminal()
    monkeypatch.setattr(sys, "stderr", err)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    shown = Console()
    with shown.progress(10, "pretrain", "steps") as bar:
        bar.update(5, loss="[3.2]", accuracy=0.4)
        shown.say("checkpoint [saved]")
    text = err.getvalue()
    assert "5/10 steps" in text and "loss [3.2]" in text and "checkpoint [saved]" in text
    assert "\x1b[" in text  # it was redrawn in place


def test_a_narrow_terminal_keeps_the_name_and_the_time_that_is_left(monkeypatch: Any) -> None:
    err = Terminal()
    monkeypatch.setattr(sys, "stderr", err)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "80")
    with Console().progress(1600, "finetune-ctc", "updates") as bar:
        bar.update(1)
        bar.update(5, **{f"value {i}": "0.123456" for i in range(8)})
    line = err.getvalue().split("\r")[-1]
    assert "finetune-ctc" in line and "5/1,600 updates  eta " in line and "value 0" in line


def test_a_dumb_terminal_gets_plain_lines(monkeypatch: Any) -> None:
    err = Terminal()
    monkeypatch.setattr(sys, "stderr", err)
    monkeypatch.setenv("TERM", "dumb")
    with Console().progress(10, "pretrain") as bar:
        bar.update(10)
    assert err.getvalue() == "pretrain: 10/10\n"


def test_bars_do_not_pile_up(monkeypatch: Any) -> None:
    err = Terminal()
    monkeypatch.setattr(sys, "stderr", err)
    monkeypatch.setenv("TERM", "xterm")
    shown = Console()
    with shown.progress(2, "outer") as outer, shown.progress(3, "inner") as inner:
        inner.update(3)
        outer.update(1)
    assert "inner: 3/3" in err.getvalue()


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (59, "59 s"), (61, "1 min"), (3599, "1 h 0 min"), (93_600, "1 d 2 h")],
)
def test_durations_are_for_people(seconds: float, text: str) -> None:
    assert console.duration(seconds) == text
