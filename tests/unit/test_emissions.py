"""Batches change nothing: rows share one only where that is so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
import toys

from w2vtool import emissions, manifest
from w2vtool.architecture import Architecture
from w2vtool.errors import DataError
from w2vtool.manifest import Manifest, Utterance
from w2vtool.model.encoder import Wav2Vec2
from w2vtool.model.heads import CtcModel

pytestmark = pytest.mark.usefixtures("one_thread")
CPU = torch.device("cpu")
LAYER_NORM = Architecture(
    **{**toys.SIZES, "extractor_norm": "layer", "norm_first": True, "normalize": True}
)
SAMPLES = [9_600, 16_000, 9_600, 12_345, 16_000, 9_600, 400]


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> list[emissions.Job]:
    """Rows of a few lengths, in no order."""
    folder = tmp_path_factory.mktemp("rows")
    found = []
    for i, samples in enumerate(SAMPLES):
        soundfile.write(folder / f"{i}.wav", toys.wave(i, samples), 16_000, subtype="FLOAT")
        found.append(Utterance(f"{i}", f"{i}.wav", samples / 16_000))
    made = Manifest(folder / "x.jsonl", found, "")
    return [(made, row) for row in found]


def ctc(architecture: Architecture) -> CtcModel:
    torch.manual_seed(1)
    return CtcModel(architecture, 29)


def logs(rows: list[emissions.Job], model: CtcModel, **more: Any) -> dict[str, np.ndarray]:
    return {row.id: x for row, x in emissions.log_probabilities(rows, model, device=CPU, **more)}


@pytest.mark.parametrize("architecture", [toys.TINY, LAYER_NORM], ids=["group", "layer"])
def test_the_size_of_batches_changes_nothing(
    rows: list[emissions.Job], architecture: Architecture
) -> None:
    model = ctc(architecture)
    alone = logs(rows, model, batch_seconds=0.01)
    for seconds in (1.3, 2.0, 60.0):
        together = logs(rows, model, batch_seconds=seconds)
        assert list(together) == list(alone) == [str(i) for i in range(len(SAMPLES))]
        for name, logp_TV in together.items():
            np.testing.assert_allclose(logp_TV, alone[name], atol=1e-5)


def test_padding_a_group_norm_model_would_change_a_lot(rows: list[emissions.Job]) -> None:
    """Why rows of a batch must be equally long: its norm runs over time, padding included."""
    model = ctc(toys.TINY).eval()
    wave = torch.from_numpy(toys.wave(0, 9_600))[None]
    padded = torch.nn.functional.pad(wave, (0, 6_400))
    with torch.no_grad():
        alone, _ = model(wave)
        within, frames_B = model(padded, torch.tensor([9_600]))
    within = within[:, : int(frames_B[0])]
    assert within.shape == alone.shape
    moved = (within - alone).norm() / alone.norm()
    assert moved > 0.2


@pytest.mark.parametrize(
    ("architecture", "sizes"),
    [(toys.TINY, [1, 3, 1, 2]), (LAYER_NORM, [5, 2])],
    ids=["group", "layer"],
)
def test_rows_share_a_batch_where_they_may(
    rows: list[emissions.Job], architecture: Architecture, sizes: list[int]
) -> None:
    body, seen = Wav2Vec2(architecture), []

    def compute(wave_BS: torch.Tensor, samples_B: torch.Tensor | None) -> list[int]:
        seen.append(len(wave_BS))
        assert (samples_B is None) == (architecture is toys.TINY or len(wave_BS) == 2)
        return [wave_BS.shape[1]] * len(wave_BS)

    list(emissions.over(rows, body, body, compute, CPU, 5 * 12_345 / 16_000))
    assert seen == sizes


def test_rows_come_in_their_order_across_chunks(
    rows: list[emissions.Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = ctc(toys.TINY)
    whole = logs(rows, model)
    monkeypatch.setattr(emissions, "PART_ROWS", 3)
    parts = logs(rows, model)
    assert list(parts) == list(whole)
    for name, logp_TV in parts.items():
        np.testing.assert_allclose(logp_TV, whole[name], atol=1e-5)


def test_every_frame_is_a_distribution(rows: list[emissions.Job]) -> None:
    for (_, row), logp_TV in zip(rows, logs(rows, ctc(toys.TINY)).values(), strict=True):
        assert logp_TV.shape == ((row.samples - 400) // 320 + 1, 29)
        assert logp_TV.dtype == np.float32
        np.testing.assert_allclose(np.exp(logp_TV).sum(1), 1, atol=1e-5)


@pytest.mark.parametrize("architecture", [toys.TINY, LAYER_NORM], ids=["post-LN", "pre-LN"])
def test_layers_are_what_their_names_say(
    rows: list[emissions.Job], architecture: Architecture
) -> None:
    torch.manual_seed(1)
    body = Wav2Vec2(architecture)
    torch.nn.init.normal_(body.context.norm.weight)  # so that the last norm shows
    names = ["conv", "0", "1", "2", "final"]
    found = list(emissions.layers(rows, body, names, device=CPU))
    assert [row.id for row, _ in found] == [row.id for _, row in rows]
    for row, arrays in found:
        frames = (row.samples - 400) // 320 + 1
        assert list(arrays) == names
        assert {name: x.shape for name, x in arrays.items()} == dict.fromkeys(names, (frames, 16))
    _, arrays = found[1]
    last = torch.from_numpy(arrays["2"])
    with torch.no_grad():
        expected = body.context.norm(last) if architecture.norm_first else last
    np.testing.assert_allclose(arrays["final"], expected.numpy(), atol=1e-6)
    assert not np.allclose(arrays["1"], arrays["2"], atol=1e-2)


def test_only_the_layers_asked_for_are_given(rows: list[emissions.Job]) -> None:
    body = Wav2Vec2(toys.TINY)
    for _, arrays in emissions.layers(rows, body, ["final", "conv"], device=CPU):
        assert list(arrays) == ["final", "conv"]


def test_a_row_without_a_frame_is_named(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", toys.wave(0, 399), 16_000)
    made = Manifest(tmp_path / "x.jsonl", [Utterance("short", "a.wav", 399 / 16_000)], "")
    with pytest.raises(DataError, match="399 samples are too short") as caught:
        logs([(made, made.rows[0])], ctc(toys.TINY))
    assert caught.value.where == f"{tmp_path}/x.jsonl (short)"


# -- inputs ---------------------------------------------------------------------------------------


def sound(path: Path, seed: int, rate: int = 16_000, channels: int = 1) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, np.stack([toys.wave(seed, rate)] * channels, axis=1), rate)
    return path


def test_inputs_come_in_the_order_given(tmp_path: Path) -> None:
    listed = toys.corpus(tmp_path / "m", "train", 2)
    one, two = sound(tmp_path / "b.wav", 1), sound(tmp_path / "a.wav", 2)
    folder = sound(tmp_path / "folder" / "deep" / "c.wav", 3).parents[1]
    rows = emissions.open_inputs([one, listed, folder, two, one])
    assert [row.id for _, row in rows] == ["b", "train-0", "train-1", "deep/c", "a"]
    for source, row in rows:
        assert len(source.audio(row)) == row.samples


def test_relative_inputs_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sound(tmp_path / "x" / "a.wav", 1)
    monkeypatch.chdir(tmp_path)
    [(source, row)] = emissions.open_inputs([Path("x/a.wav")])
    monkeypatch.chdir("/")
    assert len(source.audio(row)) == 16_000


def test_files_of_one_name_have_ids_of_their_own(tmp_path: Path) -> None:
    paths = [sound(tmp_path / folder / "a.wav", i) for i, folder in enumerate("xyz")]
    ids = [row.id for _, row in emissions.open_inputs(paths)]
    assert ids == ["a", *(str(tmp_path / x / "a").lstrip("/") for x in "yz")]


def test_rates_stereo_and_what_is_left_out_are_said_once(tmp_path: Path) -> None:
    folder = tmp_path / "f"
    for i in range(3):
        sound(folder / f"{i}.wav", i, rate=8_000)
    sound(folder / "s.wav", 9, rate=44_100, channels=2)
    (folder / "empty.wav").touch()
    said: list[str] = []
    rows = emissions.open_inputs([folder], say=said.append)
    assert [row.samples for _, row in rows] == [16_000] * 4
    assert said == [
        f"left out: {folder}/empty.wav: is empty (0 bytes) (empty)",
        "3 files at 8000 Hz will be resampled to 16 kHz",
        "1 file at 44100 Hz will be resampled to 16 kHz",
        "1 stereo file mixed down to one channel",
    ]
    path = tmp_path / "m.jsonl"
    manifest.write(path, [row for _, row in rows])
    said.clear()
    emissions.open_inputs([path], say=said.append)
    assert said == [text for text in said if "resampled" in text]
    assert len(said) == 2


def test_all_files_that_were_named_and_cannot_be_used_are_listed(tmp_path: Path) -> None:
    good = sound(tmp_path / "good.wav", 1)
    (tmp_path / "empty.wav").touch()
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(DataError) as caught:
        emissions.open_inputs([good, tmp_path / "empty.wav", tmp_path / "notes.txt"])
    assert "2 inputs cannot be used" in caught.value.what
    assert "empty.wav: is empty" in caught.value.what
    assert "notes.txt: '.txt' is not an audio file name ending" in caught.value.what


@pytest.mark.parametrize("architecture", [toys.TINY, LAYER_NORM], ids=["group", "layer"])
def test_bf16_comes_close_and_leaves_norms_and_head_in_float32(
    rows: list[emissions.Job], architecture: Architecture
) -> None:
    want = logs(rows, ctc(architecture))
    model = ctc(architecture)
    got = logs(rows, model, precision="bf16")
    for name, logp_TV in want.items():
        assert got[name].dtype == np.float32
        assert np.abs(got[name] - logp_TV).max() < 0.05 * np.abs(logp_TV).max()
    assert any((got[name] != want[name]).any() for name in want)
    types = {name: p.dtype for name, p in model.named_parameters()}
    assert types["wav2vec2.context.blocks.0.up.weight"] == torch.bfloat16
    assert types["wav2vec2.feature_encoder.layers.1.conv.weight"] == torch.bfloat16
    whole = ("norm", "head", "feature_encoder.layers.0", "positions", "mask_embedding")
    assert all(types[name] == torch.float32 for name in types if any(w in name for w in whole))
