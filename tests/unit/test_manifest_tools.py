"""``manifest convert``, ``stats``, ``split`` and ``filter``: what they print, write and return."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from w2vtool import fields, jobs, manifest
from w2vtool.errors import ConfigError, DataError, Stopped
from w2vtool.manifest import Utterance
from w2vtool.registry import BUILT_IN, TaskRef
from w2vtool.task import Task

Tool = Callable[..., dict[str, Any]]
NAMES = ("convert", "stats", "split", "filter")


def ref(name: str) -> TaskRef:
    target, summary = BUILT_IN[f"manifest {name}"]
    return TaskRef(f"manifest {name}", target, summary, "built-in")


@pytest.fixture
def tool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tool:
    """Run one of the tools on words and flags."""
    monkeypatch.chdir(tmp_path)

    def run(name: str, *inputs: str, **flags: str) -> dict[str, Any]:
        task = ref(name).load()
        given = [(f"--{flag.rstrip('_').replace('_', '-')}", v) for flag, v in flags.items()]
        lists = {"--columns", "--parts", "--speakers", "--langs"}
        words = [(flag, v.split(";") if flag in lists else v) for flag, v in given]
        assert {flag for flag, _ in words} <= set(task.flags)  # type: ignore[union-attr]
        return jobs.execute(jobs.prepare(ref(name), inputs=inputs, flags=words))

    return run


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """40 rows of 10 people in a folder below."""
    rows = [
        Utterance(f"u{i}", f"wav/{i}.wav", 2.0 + i % 5, text="ONE TWO", speaker=f"s{i % 10}")
        for i in range(40)
    ]
    (tmp_path / "in").mkdir()
    manifest.write(tmp_path / "in" / "all.jsonl", rows)
    return tmp_path / "in" / "all.jsonl"


@pytest.mark.parametrize("name", NAMES)
def test_the_example_is_of_the_task_and_each_flag_of_a_key(name: str) -> None:
    task = ref(name).load()
    assert isinstance(task, Task)
    assert all(fields.field_at(task.config, key) for key in (*task.flags.values(), task.inputs))
    assert f"w2vtool manifest {name} " in task.example


# -- convert --------------------------------------------------------------------------------------


def test_convert_says_what_the_format_cannot_hold(
    tool: Tool, corpus: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    done = tool("convert", "in/all.jsonl", to="fairseq", out="fs/train.tsv")
    assert (done["rows"], done["lost"]) == (40, {"id": 40, "speaker": 40})
    out, err = capfd.readouterr()
    assert f"40 rows, manifest → fairseq: {corpus.parents[1]}/fs/train.tsv" in out
    assert "fairseq cannot hold: speaker (40 rows)" in err
    tool("convert", "fs/train.tsv", from_="fairseq", out="back.jsonl")
    rows = manifest.read("back.jsonl").rows
    assert rows[3] == Utterance("3", "in/wav/3.wav", 5.0, sample_rate=None, text="ONE TWO")


def test_convert_writes_over_nothing_unless_forced(tool: Tool, corpus: Path) -> None:
    tool("convert", "in/all.jsonl", to="csv", out="t.csv")
    before = Path("t.csv").read_bytes()
    with pytest.raises(ConfigError, match="there already"):
        tool("convert", "in/all.jsonl", to="csv", out="t.csv")
    Path("t.csv").write_text("old")
    tool("convert", "in/all.jsonl", to="csv", out="t.csv", force="true")
    assert Path("t.csv").read_bytes() == before


def test_convert_with_names_of_columns_and_another_root(tool: Tool, corpus: Path) -> None:
    Path("t.tsv").write_text("path\tsentence\tduration\nx.wav\thi\t1.5\n")
    tool(
        "convert",
        "t.tsv",
        from_="csv",
        out="o.jsonl",
        columns="audio=path;text=sentence",
        root="/clips",
    )
    assert manifest.read("o.jsonl").rows == [
        Utterance("x", "/clips/x.wav", 1.5, sample_rate=None, text="hi")
    ]
    for wrong in ("audio", "audio=", "text=a;text=b"):
        with pytest.raises(ConfigError):
            tool("convert", "t.tsv", from_="csv", out="p.jsonl", columns=wrong)


def test_a_source_that_breaks_leaves_the_old_output(tool: Tool, corpus: Path) -> None:
    Path("n.json").write_text('{"audio_filepath": "a", "duration": 1}\nnonsense\n')
    Path("o.jsonl").write_text("old")
    with pytest.raises(DataError, match="not JSON"):
        tool("convert", "n.json", from_="nemo", out="o.jsonl", force="true")
    assert Path("o.jsonl").read_text() == "old"
    assert not [path for path in Path().iterdir() if path.name.startswith(".")]


def test_convert_stops_on_a_signal_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from w2vtool.console import Console
    from w2vtool.run import Run
    from w2vtool.tasks import manifest_convert

    manifest.write(tmp_path / "m.jsonl", [Utterance(f"u{i}", "a", 1.0) for i in range(1_500)])
    config = manifest_convert.ConvertConfig(
        input=tmp_path / "m.jsonl", out=tmp_path / "n.json", target="nemo"
    )
    run = Run("manifest convert", tmp_path / "run")
    run._console = Console(results=False, people=False)
    run.stop.signal = 15
    with pytest.raises(Stopped):
        manifest_convert.manifest_convert(config, run)
    assert [path.name for path in tmp_path.iterdir()] == ["m.jsonl"]


# -- stats ----------------------------------------------------------------------------------------


def test_stats_draws_what_it_counts(
    tool: Tool, corpus: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    rows = [*manifest.read(corpus).rows, Utterance("odd", "x.wav", 0.5, text="NO\u202eW")]
    manifest.write(corpus, rows)
    done = tool("stats", str(corpus), top="3")
    assert (done["utterances"], done["speakers"]) == (41, 10)
    assert done["hours"] == round((40 * 4 + 0.5) / 3600, 4)
    assert done["seconds"]["max"] == 6.0 and done["shortest"] == {"id": "odd", "seconds": 0.5}
    assert sum(bar["rows"] for bar in done["length_histogram"]) == 41
    assert done["alphabet"] == {" ": 40, "E": 40, "N": 41, "O": 81, "T": 40, "W": 41, "\u202e": 1}
    assert done["odd_letters"] == [
        {"letter": "\u202e", "what": "direction of writing", "count": 1, "first": "odd"}
    ]
    assert done["without"] == {"text": 0, "speaker": 1, "lang": 41}
    json.dumps(done)
    out = capfd.readouterr().out
    assert "(U+202E RIGHT-TO-LEFT OVERRIDE)" in out
    assert "\u202e" not in out, "a terminal would turn the line around"
    assert "█" in out and "7 characters" not in out
    assert "7 different characters: ENOTW" in out


def test_stats_of_several_manifests_are_those_of_all_rows(tool: Tool, corpus: Path) -> None:
    manifest.write("more.jsonl", [Utterance("x", "x.wav", 100.0, lang="en")])
    done = tool("stats", str(corpus), "more.jsonl")
    assert (done["utterances"], done["longest"]["id"]) == (41, "x")
    assert done["languages"] == {"en": {"rows": 1, "hours": 0.0278}}


def test_the_longest_bar_is_full_and_none_vanishes() -> None:
    from w2vtool.census import Bar
    from w2vtool.tasks.manifest_stats import bars

    drawn = [bar for _, _, bar in bars([Bar(0, 1, 1), Bar(1, 2, 0), Bar(2, 3, 10_000)])]
    assert drawn == ["▏", "", "█" * 32]


# -- split ----------------------------------------------------------------------------------------


def test_split_writes_parts_that_find_their_audio(
    tool: Tool, corpus: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    done = tool("split", str(corpus), out_dir="parts", parts="train=0.8;test=0.2")
    assert (done["parts"]["train"]["speakers"], done["parts"]["test"]["speakers"]) == (8, 2)
    found = {name: manifest.read(f"parts/{name}.jsonl") for name in ("train", "test")}
    assert sorted(row.id for one in found.values() for row in one.rows) == sorted(
        row.id for row in manifest.read(corpus).rows
    )
    train = {row.speaker for row in found["train"].rows}
    assert not train & {row.speaker for row in found["test"].rows}
    row = found["test"].rows[0]
    assert found["test"].audio_path(row) == corpus.parent / f"wav/{row.id[1:]}.wav"
    table = capfd.readouterr().out
    assert "part   rows  speakers  hours  wanted" in table
    with pytest.raises(ConfigError, match=r"there already: train\.jsonl, test\.jsonl"):
        tool("split", str(corpus), out_dir="parts", parts="train=0.8;test=0.2")


def test_rows_without_speakers_are_told_or_refused(
    tool: Tool, corpus: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    manifest.write("m.jsonl", [Utterance(f"u{i}", "x.wav", 1.0) for i in range(20)])
    assert tool("split", "m.jsonl", out_dir="d", parts="a=0.5;b=0.5")["without_speaker"] == 20
    assert "people may be in two parts" in capfd.readouterr().err
    with pytest.raises(DataError, match="20 of 20 rows have no speaker"):
        tool("split", "m.jsonl", out_dir="e", parts="a=0.5;b=0.5", need_speakers="true")
    assert not Path("e").exists()


# -- filter ---------------------------------------------------------------------------------------


def test_filter_says_what_each_condition_dropped(
    tool: Tool, corpus: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    done = tool("filter", str(corpus), out="out/f.jsonl", min_seconds="5", speakers="s4;s7")
    assert done["rows"] == 4
    assert (
        done["dropped"]
        == {
            "of the speakers": {"rows": 32, "hours": 0.0356},
            "audio at least 4 s": {"rows": 4, "hours": 0.0044},
        }
        or done["dropped"]["of the speakers"]["rows"] == 32
    )
    found = manifest.read("out/f.jsonl")
    assert {row.speaker for row in found.rows} == {"s4"}
    assert found.audio_path(found.rows[0]).is_relative_to(corpus.parent)
    assert "kept 4 of 40 rows" in capfd.readouterr().out


def test_filter_by_hours_comes_last(tool: Tool, corpus: Path) -> None:
    done = tool("filter", str(corpus), out="f.jsonl", max_seconds="3", hours="0.005")
    assert all(row.duration <= 3 for row in manifest.read("f.jsonl").rows)
    assert 18 <= done["hours"] * 3600 <= 21
    assert list(done["dropped"]) == ["audio at most 3 s", "0.005 h of it"]


def test_a_filter_that_keeps_nothing_writes_nothing_and_says_why(tool: Tool, corpus: Path) -> None:
    with pytest.raises(DataError) as caught:
        tool("filter", str(corpus), out="f.jsonl", min_seconds="100")
    assert "none of 40 rows meets all conditions" in str(caught.value)
    assert "audio at least 100 s: 40 rows dropped" in str(caught.value)
    assert not Path("f.jsonl").exists()
    with pytest.raises(ConfigError, match="no condition given"):
        tool("filter", str(corpus), out="f.jsonl")
