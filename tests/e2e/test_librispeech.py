"""A folder that looks like LibriSpeech, through the real command line, to transcripts.

The recordings are those of the demo corpus, decoded and written as FLAC, with real words in
``*.trans.txt``; so what is read, cut, masked and scored is speech.
"""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import soundfile

from w2vtool import audio, cli

ROOT = Path(__file__).parents[2]
RECIPE = ROOT / "recipes" / "librispeech.yaml"
DEMO = ROOT / "recipes" / "data" / "demo"
Corpus = dict[str, dict[str, str]]  # part → id → text


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Corpus]:
    """``train-clean-100``: nine utterances of three speakers; ``dev-clean``: four of two."""
    root = tmp_path_factory.mktemp("LibriSpeech")
    texts: Corpus = {}
    for part, table, speakers, each in (
        ("train-clean-100", "train.tsv", 3, 3),
        ("dev-clean", "valid.tsv", 2, 2),
    ):
        with (DEMO / table).open(encoding="utf-8", newline="") as file:
            rows = list(csv.reader(file, delimiter="\t"))
        names = list(dict.fromkeys(row[2] for row in rows))[:speakers]
        texts[part] = {}
        for number, name in enumerate(names, start=19):
            chapter = root / part / str(number) / "198"
            chapter.mkdir(parents=True)
            lines = []
            for index, (path, text, _) in enumerate([r for r in rows if r[2] == name][:each]):
                utterance = f"{number}-198-{index:04d}"
                soundfile.write(chapter / f"{utterance}.flac", audio.read(DEMO / path), 16000)
                lines.append(f"{utterance} {text}\n")
                texts[part][utterance] = text
            (chapter / f"{number}-198.trans.txt").write_text("".join(lines), encoding="utf-8")
    return root, texts


def w2vtool(*words: str) -> None:
    """A command line, in this process; it must end well."""
    with pytest.raises(SystemExit) as ended:
        cli.main(words)
    assert ended.value.code == 0


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_a_librispeech_folder_goes_all_the_way_to_transcripts(
    corpus: tuple[Path, Corpus], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, texts = corpus
    monkeypatch.chdir(tmp_path)
    smoke = (str(RECIPE), "--variant", "smoke", f"data.root={root}", "loop.device=cpu")
    work = tmp_path / "runs" / "librispeech-smoke"

    w2vtool("manifest", str(root / "train-clean-100"), "--out", "train.jsonl", "--jobs", "1")
    rows = lines(tmp_path / "train.jsonl")
    assert {row["id"]: row["text"] for row in rows} == texts["train-clean-100"]
    assert {row["speaker"] for row in rows} == {"19", "20", "21"}

    w2vtool("pretrain", *smoke)  # builds the manifests that it needs
    assert {row["id"] for row in lines(work / "manifest" / "train.jsonl")} == set(
        texts["train-clean-100"]
    )
    metrics = lines(work / "pretrain" / "metrics.jsonl")
    assert [row["step"] for row in metrics if "train/loss" in row] == [1, 2, 3, 4]
    assert all(2 <= row["train/code_perplexity"] <= 128 for row in metrics if "train/loss" in row)
    assert len([row for row in metrics if "valid/loss" in row]) == 2

    w2vtool("finetune-ctc", *smoke)
    metrics = lines(work / "finetune-ctc" / "metrics.jsonl")
    assert all(row["valid/wer"] >= 0 for row in metrics if "valid/loss" in row)

    w2vtool(
        "extract",
        "--checkpoint",
        str(work / "pretrain"),
        "--layers",
        "conv,2,final",
        "--out",
        "features",
        "--device",
        "cpu",
        str(work / "manifest" / "valid.jsonl"),
    )
    index = lines(tmp_path / "features" / "index.jsonl")
    assert {row["id"] for row in index} == set(texts["dev-clean"])
    assert all((tmp_path / "features" / row["file"]).stat().st_size > 0 for row in index)

    w2vtool("decode", str(RECIPE), "--variant", "smoke", f"data.root={root}", "--device", "cpu")
    found = {row["id"]: row["reference"] for row in lines(work / "decode" / "hyp.jsonl")}
    assert found == texts["dev-clean"]
    summary = json.loads((work / "decode" / "run.json").read_text(encoding="utf-8"))["summary"]
    assert summary["word_errors"]["reference"] == sum(
        len(text.split()) for text in texts["dev-clean"].values()
    )


def test_the_pipeline_does_the_same_and_is_done_once(
    corpus: tuple[Path, Corpus],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    root, _ = corpus
    monkeypatch.chdir(tmp_path)
    words = ("run", str(RECIPE), "--variant", "smoke", f"data.root={root}")
    w2vtool(*words)
    assert "4/4" in capsys.readouterr().err
    w2vtool(*words)
    assert capsys.readouterr().err.count("done and unchanged, skipped") == 4
