"""A checkpoint is recognised by what is in it, whatever its name."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
import toys
from safetensors.torch import save_file

from w2vtool.checkpoint import Spec
from w2vtool.errors import CheckpointError
from w2vtool.interop import detect, names
from w2vtool.interop.names import Hints
from w2vtool.schema import Architecture

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
    with pytest.raises(CheckpointError, match="cannot be read"):
        detect.read(tmp_path / "x.safetensors")


def test_a_checkpoint_of_our_own_is_sent_to_where_it_is_used(tiny_ctc: Path) -> None:
    for folder in (tiny_ctc, tiny_ctc / "checkpoints", tiny_ctc / "checkpoints" / "step-00000001"):
        with pytest.raises(CheckpointError, match="a checkpoint of w2vtool already"):
            detect.read(folder)
