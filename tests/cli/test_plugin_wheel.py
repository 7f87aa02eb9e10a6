"""What plugins/README.md shows works as it stands: as a file, as a wheel, and in its own test."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
README = ROOT / "plugins" / "README.md"


def blocks(language: str) -> list[str]:
    text = README.read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.M | re.S)


def recording(folder: Path) -> Path:
    import soundfile

    soundfile.write(folder / "a.wav", [0.1, -0.1] * 8000, 16000, subtype="FLOAT")
    return folder / "a.wav"


@pytest.fixture(scope="module")
def site(tmp_path_factory: Any) -> Path:
    """The package of the README, built into a wheel and installed into a folder of its own."""
    pytest.importorskip("hatchling")
    folder = tmp_path_factory.mktemp("package")
    source, test = blocks("python")
    (folder / "w2vtool_loudness.py").write_text(source)
    (folder / "test_loudness.py").write_text(test)
    (folder / "pyproject.toml").write_text(blocks("toml")[0])
    env = {**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_NO_INDEX": "1"}
    pip = [sys.executable, "-m", "pip", "--quiet"]
    wheel = [*pip, "wheel", "--no-build-isolation", "--no-deps", "-w", "dist", "."]
    for command in (wheel, [*pip, "install", "--no-deps", "--target", "site"]):
        found = [str(path) for path in folder.glob("dist/*.whl")]
        subprocess.run([*command, *found], cwd=folder, env=env, check=True, timeout=300)
    return folder / "site"


def test_the_worked_example_runs_as_a_single_file(cli: Any, tmp_path: Path) -> None:
    (tmp_path / "plugins").mkdir()
    (tmp_path / "plugins/loudness.py").write_text(blocks("python")[0])
    done = cli("loudness", str(recording(tmp_path)), "--floor", "-50")
    assert done.code == 0, done.err
    assert done.out == "file    dBFS\na.wav  -20.0\n"
    assert not any(path.name == "runs" for path in tmp_path.iterdir())


def test_a_packaged_plugin_is_found_and_runs(cli: Any, site: Path, tmp_path: Path) -> None:
    env = {"PYTHONPATH": str(site)}
    listed = cli("tasks", env=env)
    line = next(line for line in listed.out.splitlines() if line.startswith("loudness"))
    assert "Print how loud each recording is." in line and line.endswith("w2vtool-loudness 0.1.0")
    assert "w2vtool_loudness" not in listed.modules
    assert "Anything quieter counts as silence. [dBFS; default -60.0]" in " ".join(
        cli("loudness", "--help", env=env).out.split()
    )
    done = cli("loudness", str(recording(tmp_path)), "--json", env=env)
    assert done.code == 0, done.err
    assert json.loads(done.out) == {"mean_dbfs": pytest.approx(-20), "silent": 0}


def test_the_test_of_the_worked_example_passes(site: Path) -> None:
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(site), str(ROOT)])}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_loudness.py"]
    done = subprocess.run(command, cwd=site.parent, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
