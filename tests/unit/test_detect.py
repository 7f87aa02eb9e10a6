"""A checkpoint is recognised by what is in it, whatever its name."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
import toys
from safetensors.torch import save_file

from w2vtool import checkpoint
from w2vtool.architecture import Architecture
from w2vtool.checkpoint import Spec
from w2vtool.errors import CheckpointError
from w2vtool.interop import detect, fairseq, huggingface, names, torchaudio
from w2vtool.interop.names import Hints

GOLDEN = Path(__file__).parents[1] / "golden" / "data"
SIZES = Architecture(**{**toys.SIZES, "width": 32})
HINTS = Hints(toys.TOKENS, normalize=False, heads=2, norm_first=False)


def state(toolkit: names.Toolkit, kind: str = "ctc") -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    model = Spec(kind, SIZES, toys.TOKENS if kind == "ctc" else None).build()
    return names.export_state(model.state_dict(), SIZES, toolkit, kind)


@pytest.mark.parametrize("suffix", ["pt", "bin", "safetensors", "model"])
def test_torchaudios_names_are_recognised_in_any_file(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"weights.{suffix}"
    if suffix == "safetensors":
        save_file(state("torchaudio"), path)
    else:
        torch.save(state("torchaudio"), path)
    found = detect.read(path, HINTS)
    assert (found.toolkit, found.spec.kind) == ("torchaudio", "ctc")
    assert found.fresh == ("wav2vec2.mask_embedding",)


def test_fairseqs_names_are_recognised_without_options(tmp_path: Path) -> None:
    torch.save(state("fairseq", "pretrain"), tmp_path / "bare.pt")
    found = detect.read(tmp_path / "bare.pt", HINTS)
    assert (found.toolkit, found.spec.kind) == ("fairseq", "pretrain")


def test_a_fairseq_file_is_one_under_any_name(tmp_path: Path) -> None:
    shutil.copy(GOLDEN / "base_style.fairseq.pt", tmp_path / "pytorch_model.bin")
    assert detect.read(tmp_path / "pytorch_model.bin").toolkit == "fairseq"


@pytest.mark.parametrize("suffix", ["bin", "safetensors"])
def test_transformers_weights_alone_ask_for_their_folder(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"model.{suffix}"
    if suffix == "safetensors":
        save_file(state("hf"), path)
    else:
        torch.save(state("hf"), path)
    with pytest.raises(CheckpointError, match=r"without their config\.json") as caught:
        detect.read(path)
    assert "give the folder" in caught.value.hint


def test_what_is_none_of_them_says_what_it_holds(tmp_path: Path) -> None:
    torch.save({"weights": torch.zeros(2), "epoch": 3}, tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match="it holds weights, epoch"):
        detect.read(tmp_path / "x.pt")
    (tmp_path / "x.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0nonsense")
    with pytest.raises(CheckpointError, match="cannot be read") as caught:
        detect.read(tmp_path / "x.safetensors")
    assert caught.value.hint == "is the file complete?"


def test_a_checkpoint_of_our_own_is_sent_to_where_it_is_used(tiny_ctc: Path) -> None:
    for folder in (tiny_ctc, tiny_ctc / "checkpoints", tiny_ctc / "checkpoints" / "step-00000001"):
        with pytest.raises(CheckpointError, match="a checkpoint of w2vtool already"):
            detect.read(folder)


def test_a_file_beside_the_weights_of_transformers_is_not_taken_for_them(tmp_path: Path) -> None:
    spec = Spec("ctc", SIZES, toys.TOKENS)
    given = checkpoint.Checkpoint(tmp_path, spec, dict(spec.build().state_dict()), {})
    huggingface.write(tmp_path, given)
    torch.save({"what": "else"}, tmp_path / "model.pt")
    torch.save({"what": "else"}, tmp_path / "checkpoint_best.pt")
    found = detect.read(tmp_path)
    assert found.toolkit == "hf"
    assert tmp_path / "model.safetensors" in found.files
    assert tmp_path / "model.pt" not in found.files


@pytest.mark.parametrize("toolkit", ["fairseq", "torchaudio"])
def test_folders_that_we_wrote_are_read_whole(toolkit: str, tmp_path: Path) -> None:
    spec = Spec("ctc", SIZES, toys.TOKENS)
    given = checkpoint.Checkpoint(tmp_path, spec, dict(spec.build().state_dict()), {})
    {"fairseq": fairseq, "torchaudio": torchaudio}[toolkit].write(tmp_path, given)
    found = detect.read(tmp_path)
    assert (found.toolkit, found.spec.tokens, found.spec.kind) == (toolkit, toys.TOKENS, "ctc")
    assert sorted(file.name for file in found.files) == sorted(
        {
            "fairseq": ["checkpoint_best.pt", "dict.ltr.txt"],
            "torchaudio": ["model.pt", "config.json", "labels.txt", "w2vtool.json"],
        }[toolkit]
    )


@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_a_model_of_torchaudios_pipelines_is_recognised(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"model.{suffix}"
    wrapped = {f"model.{key}": value for key, value in state("torchaudio").items()}
    torch.save(wrapped, path) if suffix == "pt" else save_file(wrapped, path)
    found = detect.read(path, HINTS._replace(normalize=None))
    assert (found.toolkit, found.spec.architecture.normalize) == ("torchaudio", True)


def test_a_vocabulary_for_a_model_without_letters_is_said_to_be_unused(tmp_path: Path) -> None:
    torch.save(state("torchaudio", "backbone"), tmp_path / "m.pt")
    texts = [
        detect.read(tmp_path / "m.pt", h).warnings for h in (HINTS, HINTS._replace(tokens=None))
    ]
    assert ["--vocab is not used" in " ".join(text) for text in texts] == [True, False]
