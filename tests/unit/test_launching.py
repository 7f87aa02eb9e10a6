"""The Slurm script: its flags exist; a job that runs out of time saves and is queued again."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import typer

from w2vtool import cli

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "recipes" / "slurm.sbatch"
WORDS = ("pretrain", "recipes/librispeech.yaml", "data.root=/my corpora")
# what Slurm's commands do here: torchrun stops as it is told to, and every call is written down
SRUN = """#!/bin/bash
exec "$@"
"""
TORCHRUN = """#!/bin/bash
printf '%s\\n' "$@" > "$CALLS/torchrun"
trap 'exit 1' TERM
echo $$ > "$CALLS/pid"
[[ $1 ]] && kill -USR1 "$BATCH_SHELL"
for _ in {1..100}; do sleep 0.05; done
"""
SCONTROL = """#!/bin/bash
if [[ $1 == show ]]; then printf 'node7\\nnode8\\n'; else echo "$*" > "$CALLS/scontrol"; fi
"""
SCANCEL = """#!/bin/bash
echo "$*" > "$CALLS/scancel"
kill -TERM "$(< "$CALLS/pid")"
"""

pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")


def submit(folder: Path, torchrun: str, *words: str) -> tuple[int, dict[str, str]]:
    """Run the script with commands of our own; gives its exit code and what it called."""
    programs = {"srun": SRUN, "torchrun": torchrun, "scontrol": SCONTROL, "scancel": SCANCEL}
    calls = folder / "calls"
    calls.mkdir()
    for name, text in programs.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    done = subprocess.run(
        ["bash", "-c", 'export BATCH_SHELL=$$; exec bash "$0" "$@"', str(SCRIPT), *words],
        env={
            **os.environ,
            "PATH": f"{folder}:{os.environ['PATH']}",
            "CALLS": str(calls),
            "SLURM_JOB_ID": "41",
            "SLURM_JOB_NODELIST": "node[7-8]",
            "SLURM_NNODES": "2",
            "SLURM_GPUS_ON_NODE": "8",
        },
        timeout=60,
        check=False,
    )
    return done.returncode, {path.name: path.read_text() for path in calls.iterdir()}


def quick(code: int) -> str:
    return f"""#!/bin/bash\nprintf '%s\\n' "$@" > "$CALLS/torchrun"\nexit {code}\n"""


def test_the_script_is_bash() -> None:
    subprocess.run(["bash", "-n", str(SCRIPT)], check=True)


def test_its_flags_exist() -> None:
    run = pytest.importorskip("torch.distributed.run")
    text = SCRIPT.read_text()
    command = text[text.index("srun torchrun") : text.index("step=$!")].replace("\\\n", " ")
    ours = typer.main.get_command(cli.app)
    pretrain = ours.commands["pretrain"].real()  # type: ignore[attr-defined]
    launcher, _, tool = command.partition("-m w2vtool")
    flags = set(run.get_args_parser()._option_string_actions)
    assert set(re.findall(r"--[\w-]+", launcher)) <= flags
    options = {flag for parameter in pretrain.params for flag in parameter.opts}
    assert re.findall(r"--[\w-]+", tool) == ["--resume"]
    assert "--resume" in options


def test_slurm_is_asked_for_a_signal_in_time_and_for_another_go() -> None:
    asked = dict(re.findall(r"^#SBATCH --([\w-]+)=?(\S*)$", SCRIPT.read_text(), re.M))
    name, seconds = asked["signal"].removeprefix("B:").split("@")
    assert f"trap stop {name}" in SCRIPT.read_text()
    assert int(seconds) > 60
    assert "requeue" in asked
    assert asked["ntasks-per-node"] == "1"  # torchrun starts the others


@pytest.mark.parametrize("code", [0, 3])
def test_a_job_ends_as_its_training_ends_and_is_not_queued_again(code: int, tmp_path: Path) -> None:
    ended, calls = submit(tmp_path, quick(code), *WORDS)
    assert ended == code
    assert set(calls) == {"torchrun"}
    given = calls["torchrun"].splitlines()
    assert given[-len(WORDS) - 3 :] == ["-m", "w2vtool", *WORDS, "--resume"]
    flags = dict(zip(given[:-6:2], given[1:-6:2], strict=True))
    assert flags["--nnodes"] == "2"
    assert flags["--nproc-per-node"] == "8"
    assert flags["--rdzv-endpoint"] == "node7:29500"


def test_when_the_time_is_up_the_training_is_stopped_and_the_job_queued_again(
    tmp_path: Path,
) -> None:
    ended, calls = submit(tmp_path, TORCHRUN, *WORDS)
    assert ended == 0
    assert calls["scancel"] == "--signal=TERM 41\n"
    assert calls["scontrol"] == "requeue 41\n"


def test_a_training_that_was_done_when_the_time_was_up_is_not_queued_again(tmp_path: Path) -> None:
    ended, calls = submit(tmp_path, TORCHRUN.replace("'exit 1'", "'exit 0'"), *WORDS)
    assert ended == 0
    assert "scancel" in calls
    assert "scontrol" not in calls


def test_without_a_command_it_says_how_it_is_used(tmp_path: Path) -> None:
    ended, calls = submit(tmp_path, quick(0))
    assert ended == 2
    assert not calls
