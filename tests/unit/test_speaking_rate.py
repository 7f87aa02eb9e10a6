"""The worked plug-in keeps the contract, and counts letters and time as it says."""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from w2vtool import checkpoint, registry
from w2vtool.architecture import Architecture
from w2vtool.testing import check_task
from w2vtool.tokens import Tokens

FILE = Path(__file__).parents[2] / "plugins" / "speaking_rate.py"
TINY = Architecture(
    conv_layers=((8, 10, 5), (8, 8, 8), (8, 8, 8)),  # 320 samples a frame, as everywhere
    width=16,
    layers=1,
    heads=2,
    ffn_width=16,
    position_kernel=4,
    position_groups=2,
)


@pytest.fixture(scope="module")
def plugin() -> Any:
    """The module, loaded as the command line loads it."""
    task = registry.discover(FILE.parent)["speaking-rate"].load()
    return __import__(task.run.__module__)


def emissions(*symbols: str) -> np.ndarray:
    """Log-probabilities in which each frame is sure of its symbol."""
    tokens = Tokens()
    logp = np.full((len(symbols), len(tokens)), -20.0, np.float32)
    logp[np.arange(len(symbols)), [tokens.symbols.index(symbol) for symbol in symbols]] = 0.0
    return logp


def test_it_keeps_the_contract(plugin: Any) -> None:
    check_task(plugin.TASK)


def test_it_imports_nothing_of_w2vtool_but_the_api() -> None:
    tree = ast.parse(FILE.read_text(encoding="utf-8"))
    found = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    found |= {
        name.name for node in ast.walk(tree) if isinstance(node, ast.Import) for name in node.names
    }
    assert {name for name in found if name and name.startswith("w2vtool")} == {"w2vtool.api"}


def test_time_runs_from_the_first_letter_to_the_last(plugin: Any) -> None:
    logp = emissions("<s>", "|", "A", "A", "<s>", "A", "|", "<s>", "B", "|", "<s>", "<s>")
    text, speech = plugin.listen(logp, Tokens(), 0.02)
    assert text == "AA B"
    assert (speech.letters, speech.words) == (3, 2)
    assert speech.seconds == pytest.approx(7 * 0.02)  # frames 2 to 8
    assert speech.letters_per_second == pytest.approx(3 / 0.14, abs=1e-3)
    assert speech.words_per_minute == pytest.approx(60 * 2 / 0.14, abs=0.1)


@pytest.mark.parametrize("symbols", [(), ("<s>",) * 5, ("<s>", "|", "|"), ("<pad>", "<unk>")])
def test_silence_has_no_rate(plugin: Any, symbols: tuple[str, ...]) -> None:
    text, speech = plugin.listen(emissions(*symbols), Tokens(), 0.02)
    assert text == ""
    assert speech == (0, 0, 0.0)
    assert speech.letters_per_second is None
    assert speech.words_per_minute is None


def always(symbol: str, folder: Path) -> Path:
    """A checkpoint of a model that hears nothing but one symbol."""
    spec = checkpoint.Spec("ctc", TINY, Tokens())
    model = spec.build()
    with torch.no_grad():
        model.head.weight.zero_()  # type: ignore[union-attr, operator]
        model.head.bias[Tokens().symbols.index(symbol)] = 9.0  # type: ignore[union-attr, index]
    return checkpoint.save(folder, 1, model, spec)


def corpus(folder: Path) -> Path:
    """Two speakers: one second each, and two more of the second one."""
    lines = []
    for name, speaker, seconds in (("a", "anna", 1), ("b", "ben", 1), ("c", "ben", 2)):
        wave = np.random.default_rng(seconds).normal(0, 0.1, seconds * 16000)
        soundfile.write(folder / f"{name}.wav", wave, 16000)
        lines.append(f"{name}.wav\tHELLO\t{speaker}\n")
    table = folder / "transcripts.tsv"
    table.write_text("".join(lines))
    return table


def values(table: Path, model: Path, **more: str) -> dict[str, str]:
    return {"inputs": f"[{table}]", "checkpoint": str(model), "device": "cpu", "jobs": "1", **more}


def test_a_model_that_hears_one_letter_gives_one_letter_per_length(
    plugin: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, table = always("E", tmp_path / "checkpoints"), corpus(tmp_path)
    summary = check_task(plugin.TASK, values(table, model), tmp_path)
    seconds = (49 + 49 + 99) * 0.02  # frames of 1, 1 and 2 s
    assert summary["letters"] == summary["words"] == summary["utterances"] == 3
    assert summary["speakers"] == 2
    assert summary["silent"] == 0
    assert summary["letters_per_second"] == pytest.approx(3 / seconds, abs=1e-3)
    lines = [json.loads(line) for line in Path(summary["rates"]).read_text().splitlines()]
    assert [line["id"] for line in lines] == ["a", "b", "c"]
    assert lines[2]["speech_s"] == pytest.approx(1.98)
    assert lines[2]["words_per_minute"] == pytest.approx(60 / 1.98, abs=0.1)
    assert printed(capsys) == ["anna", "ben"]  # one letter in 0.98 s before two in 2.96 s


def test_the_slowest_come_first_on_request(
    plugin: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, table = always("E", tmp_path / "checkpoints"), corpus(tmp_path)
    check_task(plugin.TASK, values(table, model, slowest="true"), tmp_path)
    assert printed(capsys) == ["ben", "anna"]


def test_a_model_that_hears_nothing_gives_no_rate_and_says_so(
    plugin: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, table = always("<s>", tmp_path / "checkpoints"), corpus(tmp_path)
    summary = check_task(plugin.TASK, values(table, model), tmp_path)
    assert summary["silent"] == 3
    assert summary["letters_per_second"] is None
    assert printed(capsys) == ["anna", "ben"]


def printed(capsys: pytest.CaptureFixture[str]) -> list[str]:
    """The speakers in the order of the table."""
    lines = capsys.readouterr().out.splitlines()
    return [line.split()[0] for line in lines if line.startswith(("anna", "ben"))]
