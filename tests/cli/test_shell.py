"""The command line as people and scripts meet it: help, words, errors, exit codes, speed."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
HEAVY = {"torch", "torchaudio", "numpy", "sentencepiece", "kenlm"}

TOY = '''"""Count things, slowly.

Goes in: a number. Goes out: a summary.

Why: nobody needs to read this in --help.
"""

from pathlib import Path

from w2vtool.api import Config, Task, knob


class Sub(Config):
    """A section."""

    lr: float = knob(5e-4, "Peak rate.", unit="1/step", gt=0)
    path: Path | None = knob(None, "A language model.")


class Toy(Config):
    """The config."""

    count: int = knob(doc="How many.", unit="things", ge=1)
    optim: Sub = knob(Sub(), "Optimizer.")
    fast: bool = knob(False, "Without waiting.")
    careful: bool = knob(True, "With care.")
    inputs: list[Path] = knob([], "Audio files, or folders.")
    layers: tuple[str, ...] = knob(("conv",), "Layers.")
    mood: str = knob("good", "good, or what goes wrong.")


def count(config, run):
    from w2vtool.api import DataError, Stopped

    with run.progress(config.count, "toy", "things") as bar:
        for i in range(config.count):
            bar.update(i + 1, loss=f"{1 / (i + 1):.2f}")
            run.metrics(i + 1, {"train/loss": 1 / (i + 1)})
    print("printed by a library")
    run.result("counted")
    if config.mood == "bad data":
        raise DataError("no speech in it", where="a.wav", hint="record again")
    if config.mood == "bug":
        raise ZeroDivisionError("ouch")
    if config.mood == "object":
        return {"x": object()}
    if config.mood == "stop":
        import time

        stop = run.stop
        run.say("waiting")
        while stop.signal is None:
            time.sleep(0.01)
        raise Stopped(stop.signal)
    if config.mood == "wait":
        run.say("waiting")
        __import__("time").sleep(60)
    return {"count": config.count, "inputs": config.inputs, "loss": float("nan")}


TASK = Task(
    Toy,
    count,
    flags={
        "--count": "count",
        "--lm": "optim.path",
        "--fast": "fast",
        "--no-care": "careful",
        "--layers": "layers",
    },
    inputs="inputs",
    example="w2vtool toy --count 3 a.wav",
)
'''
RECIPE = """# Count to three.
toy:
  count: 3
  optim: {lr: 1e-3, path: x.arpa}
pipeline: [toy, {task: toy, name: toy-2, with: {count: 4}}]
variants:
  smoke: {toy: {count: 1}}
"""
BROKEN = {
    "syntax": "def (:\n",
    "missing": '"""Needs what is not there."""\nimport nowhere_at_all\n',
    "wrong": "TASK = 42\n",
    "old": "from w2vtool.api import Config, Task\nTASK = Task(Config, print, api=0)\n",
    "exits": "import sys\nsys.exit(0)\n",
}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path) -> Path:
    (tmp_path / "plugins").mkdir()
    (tmp_path / "recipes").mkdir()
    (tmp_path / "plugins/toy.py").write_text(TOY)
    (tmp_path / "recipes/three.yaml").write_text(RECIPE)
    return tmp_path


def breakages(folder: Path) -> None:
    for name, source in BROKEN.items():
        (folder / f"plugins/{name}.py").write_text(source)


# -- what is imported, with every kind of broken plug-in present -------------------------------


@pytest.mark.parametrize(
    "words", [["--help"], [], ["tasks"], ["lm"], ["--version"], ["tasks", "--help"]]
)
def test_a_listing_imports_no_torch_no_pydantic_no_rich(
    words: list[str], cli: Any, folder: Path
) -> None:
    breakages(folder)
    done = cli(*words)
    assert not done.modules & (HEAVY | {"pydantic", "rich", "yaml"}) and done.modules
    assert not any(name.startswith("w2vtool_plugin") for name in done.modules)
    assert "Traceback" not in done.err


@pytest.mark.parametrize(
    "words",
    [
        ["toy", "--help"],
        ["toy", "recipes/three.yaml", "--print-config"],
        ["toy", "recipes/three.yaml", "optim.lr=fast"],
        ["toy", "recipes/nope.yaml"],
        ["check", "recipes/three.yaml"],
        ["recipes"],
        ["missing"],
    ],
    ids=" ".join,
)
def test_help_configs_and_recipe_errors_import_nothing_heavy(
    words: list[str], cli: Any, folder: Path
) -> None:
    breakages(folder)
    assert not cli(*words).modules & (HEAVY | {"rich"})


@pytest.mark.parametrize(
    "name",
    [
        "manifest",
        "pretrain",
        "finetune-ctc",
        "lm train",
        "tokens train",
        "decode",
        "extract",
        "run",
        "tasks",
        "recipes",
        "check",
        "info",
    ],
)
def test_help_of_a_built_in_task_imports_nothing_heavy_and_has_an_example(
    name: str, cli: Any
) -> None:
    done = cli(*name.split(), "--help")
    assert done.code == 0, done.err
    assert not done.modules & (HEAVY | {"rich"})
    assert f"Example:\n    w2vtool {name} " in done.out


# -- help and listings ------------------------------------------------------------------------


def test_root_help_lists_tasks_groups_and_commands(cli: Any, folder: Path) -> None:
    breakages(folder)
    done = cli("--help")
    assert done.code == 0
    for name in (
        "manifest",
        "pretrain",
        "lm",
        "toy",
        "missing",
        "syntax",
        "tasks",
        "check",
        "info",
    ):
        assert f"\n  {name} " in done.out
    assert "Count things, slowly (plugins/toy.py)" in done.out
    assert "train" in cli("lm").err + cli("lm").out
    listed = " ".join(done.out.split())
    assert " lm N-gram language models: train, info, perplexity, prune tokens " in listed
    assert " manifest Build a manifest from folders of audio; check, stats, split, " in listed
    assert "..." not in done.out.partition("Commands:")[2]  # no sentence is cut


def test_tasks_says_where_each_is_from_and_what_it_hides(cli: Any, folder: Path) -> None:
    breakages(folder)
    (folder / "plugins/decode.py").write_text(TOY)
    out = cli("tasks").out
    rows = {line.split("  ")[0]: line for line in out.splitlines()}
    assert rows["decode"].endswith("built-in, hides plugins/decode.py")
    assert "Needs what is not there." in rows["missing"] and "cannot be read" in rows["syntax"]
    assert len([line for line in out.splitlines() if "plugins/" in line]) == 7


def test_check_of_tasks_shows_the_traceback(cli: Any, folder: Path) -> None:
    breakages(folder)
    done = cli("tasks", "--check", "missing", "toy")
    assert done.code == 4 and "toy: ok" in done.out
    assert 'plugins/missing.py", line 2' in done.err and "error: 1 of 2" in done.err
    assert cli("tasks", "--check", "toy").code == 0
    assert cli("tasks", "--check", "tyo").err.count("did you mean 'toy'") == 1


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_plugin_costs_its_own_command_only(name: str, cli: Any, folder: Path) -> None:
    breakages(folder)
    done = cli(name)
    assert done.code == 4 and done.err.startswith(f"error: plugins/{name}.py: ")
    assert "Traceback" not in done.err
    assert cli("toy", "count=1").code == 0


def test_task_help_is_the_docstring_the_fields_and_an_example(cli: Any) -> None:
    out = cli("toy", "--help").out
    assert "Count things, slowly." in out and "Goes in: a number." in out and "Why" not in out
    assert "--count INTEGER" in out and "How many. [things; required]" in out
    assert "--lm PATH" in out and "A language model. [optim.path]" in out
    assert "--fast " in out and "--layers TEXT,..." in out
    assert "INPUTS: Audio files, or folders." in out
    assert "Example:\n    w2vtool toy --count 3 a.wav" in out
    for option in (
        "--variant",
        "--print-config",
        "--json",
        "--resume",
        "--work",
        "--run-dir",
        "-v",
    ):
        assert option in out


def test_a_typer_plugin_brings_its_own_commands(cli: Any, folder: Path) -> None:
    (folder / "plugins/zoo.py").write_text(
        '"""A zoo."""\nimport typer\nTASK = typer.Typer()\n'
        "@TASK.command()\ndef ls(): print('lions')\n"
        "@TASK.command()\ndef get(name: str): print('got', name)\n"
    )
    assert cli("zoo", "get", "bear").out == "got bear\n" and cli("zoo", "ls").out == "lions\n"


def test_a_wrong_flag_in_a_task_is_a_plugin_error(cli: Any, folder: Path) -> None:
    (folder / "plugins/toy.py").write_text(TOY.replace('"optim.path"', '"optim.pth"'))
    done = cli("toy", "--help")
    assert done.code == 4 and "flag --lm cannot stand for 'optim.pth'" in done.err


# -- words ------------------------------------------------------------------------------------


def test_print_config_loads_back_and_tells_origins(cli: Any, folder: Path) -> None:
    words = (
        "recipes/three.yaml",
        "optim.lr=2e-3",
        "--fast",
        "--no-care",
        "--layers",
        "a,b",
        "in.wav",
    )
    first = cli("toy", *words, "--print-config")
    assert first.code == 0, first.err
    lines = {line.split(":")[0].strip(): line for line in first.out.splitlines()}
    assert lines["count"].endswith("# recipes/three.yaml:3")
    assert "0.002" in lines["lr"] and lines["lr"].endswith("# command line (optim.lr)")
    assert "careful: false" in lines["careful"] and lines["fast"].endswith("(--fast)")
    assert f"{folder}/recipes/x.arpa" in lines["path"] and "[a, b]" in lines["layers"]
    assert f"[{folder}/in.wav]" in lines["inputs"] and lines["mood"].endswith("# default")
    (folder / "printed.yaml").write_text(first.out)
    again = cli("toy", "printed.yaml", "--print-config")
    strip = [line.split(" # ")[0].rstrip() for line in first.out.splitlines()]
    assert [line.split(" # ")[0].rstrip() for line in again.out.splitlines()] == strip
    assert not (folder / "runs").exists()


def test_a_run_leaves_a_folder_named_after_the_recipe(cli: Any, folder: Path) -> None:
    done = cli("toy", "recipes/three.yaml", "--variant", "smoke")
    assert done.code == 0 and done.out == "printed by a library\ncounted\n"
    assert done.err == "toy: 1/1 things  loss 1.00\n"
    made = folder / "runs/three-smoke/toy"
    facts = json.loads((made / "run.json").read_text())
    assert (facts["status"], facts["variant"], facts["summary"]["count"]) == ("done", "smoke", 1)
    assert facts["command"] == "w2vtool toy recipes/three.yaml --variant smoke"
    assert "recipes/three.yaml:7" in (made / "config.yaml").read_text()
    assert cli("toy", "count=1", "--work", "w").code == 0 and (folder / "w/toy/run.json").exists()
    assert cli("toy", "count=1", "--run-dir", "r").code == 0 and (folder / "r/run.json").exists()
    assert cli("toy", "count=1").code == 0 and len(list((folder / "runs/toy").iterdir())) == 1


def test_json_is_all_there_is_on_stdout(cli: Any, folder: Path) -> None:
    done = cli("toy", "--count", "2", "a.wav", "b=c.wav", "--json", "--run-dir", "r")
    assert done.code == 2  # b=c.wav is key=value, unless there is such a file
    (folder / "b=c.wav").write_text("")
    done = cli("toy", "--count", "2", "a.wav", "b=c.wav", "--json", "--run-dir", "r")
    found = json.loads(done.out)
    assert found == {
        "run": str(folder / "r"),
        "count": 2,
        "inputs": [str(folder / "a.wav"), str(folder / "b=c.wav")],
        "loss": None,
    }
    assert "printed by a library" in done.err


def test_a_task_without_inputs_takes_the_name_of_a_recipe(cli: Any, folder: Path) -> None:
    (folder / "plugins/toy.py").write_text(TOY.replace('inputs="inputs",', ""))
    assert cli("toy", "three").code == 0
    done = cli("toy", "tree")
    assert done.code == 2 and "neither a recipe nor key=value" in done.err
    assert "did you mean 'three'" in done.err


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (
            ["recipes/three.yaml", "recipes/a.yml"],
            "one recipe at a time, not recipes/three.yaml and",
        ),
        (["recipes/three.yaml", "--variant", "smok"], "did you mean 'smoke'"),
        (["--variant", "smoke", "count=1"], "a variant without a recipe"),
        (
            ["recipes/three.yaml", "optim.rl=1"],
            "command line (optim.rl): unknown key 'rl' in optim",
        ),
        (["--count", "many"], "command line (--count): count: expected a whole number, got 'many'"),
        ([], "count: required, but not given\n  hint: give --count or count="),
        (
            ["count=1", "optim.path=run:a/b"],
            "command line (optim.path): optim.path: 'run:a/b' needs",
        ),
        (["count=1", "--lm", ""], "command line (--lm): optim.path: expected a path, got ''"),
    ],
)
def test_a_usage_error_says_what_where_and_what_to_do(
    words: list[str], what: str, cli: Any
) -> None:
    done = cli("toy", *words)
    assert done.code == 2 and what in done.err and done.out == ""
    assert "Traceback" not in done.err


# -- how it ends ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mood", "code", "what"),
    [
        ("bad data", 3, "error: a.wav: no speech in it\n  hint: record again\n"),
        ("bug", 1, "ZeroDivisionError: ouch\nthis is a bug in w2vtool or in a plug-in"),
        ("object", 4, "error: task toy: summary: object does not fit in JSON"),
    ],
)
def test_each_kind_of_failure_has_its_code_and_is_recorded(
    mood: str, code: int, what: str, cli: Any, folder: Path
) -> None:
    done = cli("toy", "count=1", f"mood={mood}", "--run-dir", "r")
    assert done.code == code and what in done.err
    assert ("Traceback" in done.err) == (code == 1)
    assert json.loads((folder / "r/run.json").read_text())["status"] == "failed"


@pytest.mark.parametrize(
    ("mood", "number", "code"),
    [
        ("stop", signal.SIGTERM, 143),
        ("stop", signal.SIGINT, 130),
        ("wait", signal.SIGTERM, 143),
        ("wait", signal.SIGINT, 130),
    ],
)
def test_a_signal_ends_a_run_that_can_be_resumed(
    mood: str, number: int, code: int, folder: Path, cli: Any
) -> None:
    there = ("--run-dir", "a run")
    command = [sys.executable, "-m", "w2vtool", "toy", "count=1", f"mood={mood}", *there]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        command, cwd=folder, env=env, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
    ) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if line == "waiting\n":
                break
        time.sleep(0.2)
        process.send_signal(number)
        err = process.stderr.read()
        assert process.wait(timeout=30) == code, err
    assert "Traceback" not in err
    if (mood, number) != ("wait", signal.SIGTERM):  # that one ends at once, without a word
        assert "; --resume --run-dir 'a run' goes on from what was saved" in err
    assert json.loads((folder / "a run/run.json").read_text())["status"] == "interrupted"
    again = cli("toy", "count=1", *there, "--resume")
    assert again.code == 0 and not list(folder.glob("a run~*"))
    assert json.loads((folder / "a run/run.json").read_text())["status"] == "done"


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EEXIST, errno.ENOTDIR, errno.ENAMETOOLONG])
def test_what_the_machine_refuses_is_not_called_a_bug(number: int, cli: Any, folder: Path) -> None:
    (folder / "plugins/full.py").write_text(
        "from w2vtool.api import Config, Task\n"
        f"def run(config, run): raise OSError({number}, {os.strerror(number)!r}, 'x.bin')\n"
        "TASK = Task(Config, run)\n"
    )
    done = cli("full")
    assert done.code == 3 and done.err == f"error: {os.strerror(number)}: x.bin\n"


def test_an_unknown_command_comes_with_a_suggestion(cli: Any) -> None:
    done = cli("dekode")
    assert done.code == 2 and "decode" in done.err


def test_version(cli: Any) -> None:
    from w2vtool import __version__

    assert cli("--version").out == f"w2vtool {__version__}\n"


# -- check and recipes ------------------------------------------------------------------------


def test_check_of_a_good_recipe_names_what_was_checked(cli: Any) -> None:
    done = cli("check", "three")
    assert done.code == 0
    assert done.out == "recipes/three.yaml: ok (toy, step toy, step toy-2; variants smoke)\n"


def test_check_lists_everything_that_is_wrong_in_any_variant(cli: Any, folder: Path) -> None:
    (folder / "recipes/bad.yaml").write_text(
        "toy:\n  count: three\n  optim: {lr: -1}\nmodle: {}\n"
        "lm: {trian: {}}\n"
        "pipeline: [toi, {task: toy, with: {counts: 3}}]\n"
        "variants:\n  smoke:\n    toy: {fast: perhaps}\n"
    )
    done = cli("check", "recipes/bad.yaml")
    assert done.code == 2
    assert [line for line in done.err.splitlines() if not line.startswith("  ")] == [
        "error: 7 problems",
        "recipes/bad.yaml:2: count: expected a whole number, got 'three'",
        "recipes/bad.yaml:3: optim.lr: '-1' is out of range, must be more than 0.0",
        "recipes/bad.yaml:4: unknown section 'modle'",
        "recipes/bad.yaml:5: unknown section 'trian' in lm",
        "recipes/bad.yaml:6: no task 'toi'",
        "recipes/bad.yaml:6: unknown key 'counts'",
        "recipes/bad.yaml:9: fast: expected true or false, got 'perhaps'",
    ]


def test_what_the_command_line_gives_may_be_missing_in_a_section(cli: Any, folder: Path) -> None:
    (folder / "recipes/part.yaml").write_text("toy: {fast: yes}\n")
    assert cli("check", "part").code == 0
    (folder / "recipes/part.yaml").write_text("toy: {fast: yes}\npipeline: [toy]\n")
    assert "count: required" in cli("check", "part").err


def test_recipes_are_listed_with_their_first_comment(cli: Any, folder: Path) -> None:
    (folder / "recipes/bad.yaml").write_text("a: [\n")
    out = cli("recipes").out
    assert "recipes/three.yaml  Count to three." in out and out.rstrip().endswith("smoke")
    assert "(cannot be read: not valid YAML" in out


def test_the_schema_has_the_sections_of_all_tasks_that_load(cli: Any, folder: Path) -> None:
    breakages(folder)
    done = cli("recipes", "--schema")
    assert done.code == 0 and not done.modules & HEAVY
    assert {"manifest", "toy", "variants", "pipeline"} <= set(json.loads(done.out)["properties"])
    assert "left out: plugins/missing.py" in done.err


# -- a task that works on the whole recipe ----------------------------------------------------

CHAIN = '''"""Run the steps of a recipe."""
from w2vtool import jobs
from w2vtool.schema import Config, knob
from w2vtool.task import Task


class Chain(Config):
    """Options."""

    only: str = knob("", "One step.")


def chain(config, run):
    done = {}
    for job in jobs.pipeline(run.recipe, run.words, work=run.work):
        if config.only in ("", job.step):
            done[job.step] = jobs.execute(job, parent=run)["count"]
    return done


TASK = Task(Chain, chain, whole_recipe=True)
'''


def test_a_pipeline_runs_steps_with_words_for_any_of_them(cli: Any, folder: Path) -> None:
    (folder / "plugins/chain.py").write_text(CHAIN)
    done = cli("chain", "three", "toy.fast=yes", "toy-2.count=5", "--json")
    assert done.code == 0, done.err
    assert json.loads(done.out) == {"toy": 3, "toy-2": 5}
    assert sorted(p.name for p in (folder / "runs/three").iterdir()) == ["toy", "toy-2"]
    text = (folder / "runs/three/toy-2/config.yaml").read_text()
    assert "fast: true" in text and "command line (count)" in text
    assert json.loads(cli("chain", "three", "only=toy", "--json").out) == {"toy": 3}
    wrong = cli("chain", "three", "typo.fast=yes")
    assert wrong.code == 2 and "no step takes 'typo.fast=yes'" in wrong.err


def test_errors_on_other_ranks_say_which_rank(cli: Any) -> None:
    env = {"RANK": "1", "WORLD_SIZE": "2"}
    assert cli("toy", "count=x", env=env).err.startswith("[rank 1] error: ")
    assert "several processes without a recipe" in cli("toy", "count=1", env=env).err
    quiet = cli("toy", "three.yaml", "count=1", "--run-dir", "r", env=env)
    assert quiet.code == 2 and "no such recipe" in quiet.err


def test_help_shows_a_path_below_the_run_as_it_is_written(cli: Any) -> None:
    assert "[default run:emissions]" in " ".join(cli("tune-decode", "--help").out.split())


def test_help_shows_the_default_that_the_task_has_not_that_of_the_section_alone(cli: Any) -> None:
    shown = " ".join(cli("finetune-ctc", "--help").out.split())
    assert "[loop.updates; default 80000]" in shown
    assert "[loop.updates; default 400000]" in " ".join(cli("pretrain", "--help").out.split())
