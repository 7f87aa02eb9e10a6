"""Batches: the same bytes whoever loads them; crops, padding, normalisation and masks."""

from __future__ import annotations

import dataclasses
import hashlib
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from torch import Tensor

from w2vtool.architecture import Architecture
from w2vtool.batches import Batch, Collate, ctc_batch, frames_of, load, pretrain_batch
from w2vtool.errors import DataError
from w2vtool.manifest import Manifest, Utterance, read, write
from w2vtool.model import masking
from w2vtool.model.masking import span_mask
from w2vtool.plan import Bin, Plan
from w2vtool.schema import MaskConfig
from w2vtool.tokens import Tokens

torch.set_num_threads(1)
SMALL = Architecture(width=64, heads=4, layers=1, ffn_width=64)
NORMALIZED = SMALL.model_copy(update={"normalize": True})
MASK = MaskConfig(channel_probability=0.5, channel_length=8)
TEXTS = ("A", "BE", "SEE", "DO NOT", "IT'S", "LLAMA")


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    """24 utterances of 0.4 to 1.5 s, in noise of different loudness."""
    folder, rng = tmp_path_factory.mktemp("corpus"), np.random.default_rng(0)
    rows = []
    for i in range(24):
        samples = int(rng.uniform(0.4, 1.5) * 16_000)
        wave = rng.normal(0.01, rng.uniform(0.01, 0.2), samples).clip(-1, 1)
        soundfile.write(folder / f"{i}.wav", wave, 16_000, subtype="PCM_16")
        rows.append(Utterance(f"u{i}", f"{i}.wav", samples / 16_000, text=TEXTS[i % len(TEXTS)]))
    write(folder / "all.jsonl", rows)
    return read(folder / "all.jsonl")


def plan(manifest: Manifest, **changes: Any) -> Plan:
    given = {"bin_seconds": 5.0, "min_seconds": 0.1, "max_seconds": 1.2, "crop": True, "seed": 3}
    seconds = np.array([row.duration for row in manifest.rows])
    return Plan(seconds, source=manifest.sha256, **(given | changes))


def pretraining(architecture: Architecture = SMALL, max_seconds: float = 1.2) -> Collate:
    return partial(pretrain_batch, architecture=architecture, mask=MASK, max_seconds=max_seconds)


def ctc(architecture: Architecture = SMALL, mask: MaskConfig | None = MASK) -> Collate:
    return partial(ctc_batch, architecture=architecture, tokens=Tokens(), mask=mask)


def digest(batches: Iterable[Batch]) -> str:
    """Of every byte of every field, in order."""
    out = hashlib.sha256()
    for batch in batches:
        for name, value in sorted(vars(batch).items()):
            out.update(name.encode())
            if isinstance(value, Tensor):
                out.update(f"{value.dtype} {tuple(value.shape)}".encode())
                out.update(value.contiguous().numpy().tobytes())
            else:
                out.update(repr(value).encode())
    return out.hexdigest()


def part_of(manifest: Manifest, rows: list[int], key: int = 99) -> Bin:
    return Bin(0, 0, np.array(rows), np.array(rows, np.int64) * 1_000_003 + key, 7)


def waves(manifest: Manifest) -> Callable[[int], np.ndarray]:
    return lambda row: manifest.audio(manifest.rows[row])


# -- loading -------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")  # on one core
@pytest.mark.parametrize("collate", [pretraining(), pretraining(NORMALIZED), ctc()])
def test_the_stream_is_byte_identical_with_0_1_and_2_workers_and_any_cache(
    manifest: Manifest, collate: Collate
) -> None:
    made = plan(manifest, crop=False, max_seconds=1.5)
    numbers = list(range(2 * made.bins_per_epoch + 1))
    want = digest(load(manifest, made, collate, numbers))
    for options in ({"cache_megabytes": 9}, {"workers": 1}, {"workers": 2, "cache_megabytes": 9}):
        assert digest(load(manifest, made, collate, numbers, **options)) == want, options
    assert digest(load(manifest, made, collate, numbers[::-1])) != want


@pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")  # on one core
def test_workers_compute_with_one_thread_each(
    manifest: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    how, made = pretraining(), plan(manifest)

    def told(*given: Any) -> Batch:
        return dataclasses.replace(how(*given), masked=torch.get_num_threads())

    torch.set_num_threads(2)
    try:
        for workers, threads in ((0, 2), (2, 1)):
            found = load(manifest, made, told, range(4), workers=workers)
            assert {batch.masked for batch in found} == {threads}
    finally:
        torch.set_num_threads(1)


def test_batches_come_in_the_order_that_was_asked_for(manifest: Manifest) -> None:
    made = plan(manifest)
    numbers = [7, 2, 2, 30]
    batches = list(load(manifest, made, pretraining(), numbers))
    assert [batch.rows for batch in batches] == [made.bin(n).rows.tolist() for n in numbers]
    assert digest(batches[1:2]) == digest(batches[2:3])


def test_a_later_start_gives_the_rest_of_the_stream(manifest: Manifest) -> None:
    made = plan(manifest)
    whole = list(load(manifest, made, pretraining(), range(12)))
    rest = load(manifest, plan(manifest), pretraining(), range(8, 12), workers=1)
    assert digest(rest) == digest(whole[8:])


def test_loading_leaves_the_global_random_state_alone(manifest: Manifest) -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    list(load(manifest, plan(manifest), pretraining(), range(3)))
    list(load(manifest, plan(manifest), pretraining(), range(3), workers=1))
    assert torch.equal(torch.get_rng_state(), before)


def test_a_small_corpus_is_decoded_once(
    manifest: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded: list[str] = []
    audio = Manifest.audio

    def counting(self: Manifest, row: Utterance) -> np.ndarray:
        decoded.append(row.id)
        return audio(self, row)

    monkeypatch.setattr(Manifest, "audio", counting)
    made = plan(manifest)
    two_epochs = range(2 * made.bins_per_epoch)
    list(load(manifest, made, pretraining(), two_epochs, cache_megabytes=9))
    assert sorted(decoded) == sorted(row.id for row in manifest.rows)
    decoded.clear()
    list(load(manifest, made, pretraining(), two_epochs))
    assert len(decoded) == 2 * len(manifest.rows)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_bad_file_is_the_same_error_from_a_worker_as_without(
    manifest: Manifest, tmp_path: Path, workers: int
) -> None:
    rows = [Utterance("gone", "gone.wav", 1.0)]
    write(tmp_path / "m.jsonl", rows)
    bad = read(tmp_path / "m.jsonl")
    with pytest.raises(DataError) as caught:
        list(load(bad, plan(bad), pretraining(), range(1), workers=workers))
    assert "gone.wav" in caught.value.where
    assert "(gone)" in caught.value.where
    assert "Traceback" not in str(caught.value)


# -- rows that cannot be read ----------------------------------------------------------------------


@pytest.fixture
def holes(manifest: Manifest, tmp_path: Path) -> Callable[[set[int]], Manifest]:
    """The same corpus, with the same hash, without the files of these rows."""

    def without(rows: set[int]) -> Manifest:
        found = [
            dataclasses.replace(row, audio="gone.wav") if number in rows else row
            for number, row in enumerate(manifest.rows)
        ]
        return dataclasses.replace(manifest, rows=found)

    return without


Holes = Callable[[set[int]], Manifest]


@pytest.mark.parametrize("collate", [pretraining(), ctc()])
def test_where_everything_can_be_read_nothing_stands_in(
    manifest: Manifest, collate: Collate
) -> None:
    made = plan(manifest, crop=False, max_seconds=1.5)
    numbers = range(made.bins_per_epoch)
    plain = digest(load(manifest, made, collate, numbers))
    assert digest(load(manifest, made, collate, numbers, stand_in=True)) == plain


@pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")  # on one core
@pytest.mark.parametrize("collate", [pretraining(), ctc()])
def test_what_stands_in_is_the_same_whoever_loads_it(holes: Holes, collate: Collate) -> None:
    broken = holes({2, 3, 11, 17})
    made = plan(broken, crop=False, max_seconds=1.5)
    numbers = range(3 * made.bins_per_epoch)
    want = digest(load(broken, made, collate, numbers, stand_in=True))
    for options in ({"cache_megabytes": 9}, {"workers": 2}):
        assert digest(load(broken, made, collate, numbers, stand_in=True, **options)) == want
    rest = list(load(broken, made, collate, numbers, stand_in=True))[5:]
    assert digest(load(broken, made, collate, numbers[5:], stand_in=True)) == digest(rest)


def test_the_next_row_of_the_bin_that_can_be_read_stands_in_under_the_lost_ones_key(
    holes: Holes,
) -> None:
    made = plan(holes(set()), bin_seconds=9.0)
    own = made.bin(0)
    rows = own.rows.tolist()
    assert len(rows) >= 5
    broken = holes({rows[1], rows[2], rows[-1]})
    (batch,) = load(broken, made, pretraining(), [0], stand_in=True)
    assert batch.rows == [rows[0], rows[3], rows[3], *rows[3:-1], rows[0]]
    assert batch.key_B.tolist() == own.keys.tolist()
    assert batch.key == own.key
    assert sorted(batch.lost) == sorted(
        (row, "no such file") for row in (rows[1], rows[2], rows[-1])
    )
    twice = batch.wave_BS[1:4]
    assert not torch.equal(twice[0], twice[1]), "the same utterance, cropped elsewhere"
    (whole,) = load(holes(set()), made, pretraining(), [0])
    for place in (0, 3, 4):
        assert torch.equal(batch.wave_BS[place], whole.wave_BS[place]), "the others are as ever"


def test_where_a_whole_bin_is_lost_the_next_one_stands_in_under_other_keys(holes: Holes) -> None:
    made = plan(holes(set()))
    lost = {*made.bin(0).rows.tolist(), *made.bin(1).rows.tolist()}
    later = next(n for n in range(2, 9) if not lost >= set(made.bin(n).rows.tolist()))
    broken = holes(lost)
    first, second = load(broken, made, pretraining(), [0, 1], stand_in=True)
    assert first.rows == second.rows == made.bin(later).rows.tolist()
    assert {row for row, _ in first.lost} == lost
    keys = [batch.key_B.tolist() for batch in (first, second)]
    assert keys[0] != keys[1]
    assert made.bin(later).keys.tolist() not in keys
    assert (first.key, second.key) == (made.bin(0).key, made.bin(1).key)
    assert (first.key_B >= 0).all()


@pytest.mark.parametrize("workers", [0, 1])
def test_where_nothing_can_be_read_any_more_that_is_an_error(holes: Holes, workers: int) -> None:
    broken = holes(set(range(24)))
    with pytest.raises(DataError, match="no such file"):
        list(load(broken, plan(broken), pretraining(), range(3), workers=workers, stand_in=True))


UNCAUGHT = """
import sys
from functools import partial
import numpy
from w2vtool import architecture, batches, manifest, plan, schema

rows = manifest.read(sys.argv[1])
seconds = numpy.array([row.duration for row in rows.rows])
made = plan.Plan(seconds, bin_seconds=2.0, min_seconds=0.1, max_seconds=1.2, crop=True, seed=1,
                 source=rows.sha256)
collate = partial(batches.pretrain_batch, architecture=architecture.Architecture(),
                  mask=schema.MaskConfig(), max_seconds=1.2)
stream = batches.load(rows, made, collate, range(1000), workers=1)
next(stream)
raise RuntimeError("the loop has failed")
"""


def test_a_program_that_fails_while_workers_load_still_ends(manifest: Manifest) -> None:
    command = [sys.executable, "-c", UNCAUGHT, str(manifest.path)]
    root = Path(__file__).parents[2]
    ended = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 1
    assert "the loop has failed" in ended.stderr


# -- pre-training --------------------------------------------------------------------------------


def every_batch(manifest: Manifest, collate: Collate, **changes: Any) -> Iterator[Batch]:
    made = plan(manifest, **changes)
    return load(manifest, made, collate, range(made.bins_per_epoch))


def test_crops_are_pieces_of_their_utterances_in_one_length_and_nothing_is_padded(
    manifest: Manifest,
) -> None:
    cropped = 0
    made = plan(manifest)
    for number, batch in enumerate(every_batch(manifest, pretraining())):
        whole = [waves(manifest)(row) for row in batch.rows]
        length = min(19_200, round(made.bin(number).shortest * 16_000))
        assert batch.samples_B is None
        assert batch.wave_BS.shape == (len(whole), length)
        assert batch.seconds == pytest.approx(len(whole) * length / 16_000)
        for crop, wave in zip(batch.wave_BS.numpy(), whole, strict=True):
            pieces = np.lib.stride_tricks.sliding_window_view(wave, length)
            assert (pieces == crop).all(1).any()
            cropped += len(wave) > length
    assert cropped > 10


def test_all_bins_of_a_bucket_have_one_length(manifest: Manifest) -> None:
    for collate, changes in ((pretraining(), {}), (ctc(), {"crop": False, "max_seconds": 9.0})):
        made = plan(manifest, bin_seconds=9.0, **changes)
        lengths: dict[float, set[int]] = {}
        for number in range(2 * made.bins_per_epoch):
            part = made.bin(number)
            found = collate(manifest, waves(manifest), part).wave_BS.shape[1]
            lengths.setdefault(part.longest, set()).add(found)
        assert all(len(found) == 1 for found in lengths.values())


def crop_starts(manifest: Manifest, keys: Iterable[int]) -> list[int]:
    """Where a row of 12,000 samples is cropped to 8,000."""
    ramp = np.arange(12_000, dtype=np.float32)
    return [
        int(pretraining(max_seconds=0.5)(manifest, lambda _: ramp, part).wave_BS[0, 0])
        for part in (part_of(manifest, [0], key) for key in keys)
    ]


def test_the_place_of_a_crop_follows_from_the_key_of_the_row(manifest: Manifest) -> None:
    starts = crop_starts(manifest, range(400))
    assert starts == crop_starts(manifest, range(400))
    assert 0 <= min(starts) < 60
    assert 3_940 < max(starts) <= 4_000
    assert np.mean(starts) == pytest.approx(2_000, abs=4.5 * 4_000 / 12**0.5 / 20)


def test_a_row_is_cropped_at_random_but_never_past_its_end(manifest: Manifest) -> None:
    ramp = np.arange(8_002, dtype=np.float32)  # three places to start
    collate = pretraining(max_seconds=0.5)
    starts = {
        int(collate(manifest, lambda _: ramp, part_of(manifest, [0], key)).wave_BS[0, 0])
        for key in range(60)
    }
    assert starts == {0, 1, 2}


def test_normalisation_is_over_the_whole_utterance_before_the_crop(manifest: Manifest) -> None:
    rng = np.random.default_rng(1)
    wave = np.concatenate([rng.normal(0, 0.01, 9_000), rng.normal(0.1, 0.3, 9_000)])
    wave = wave.astype(np.float32)
    batch = pretraining(NORMALIZED, 0.5)(manifest, lambda _: wave, part_of(manifest, [0]))
    whole = (wave - wave.mean()) / np.sqrt(wave.var() + 1e-5)
    pieces = np.lib.stride_tricks.sliding_window_view(whole, 8_000)
    assert np.abs(pieces - batch.wave_BS[0].numpy()).max(1).min() < 1e-4
    assert not 0.9 < batch.wave_BS.var().item() < 1.1  # the crop alone is not


@pytest.mark.parametrize("architecture", [SMALL, NORMALIZED])
def test_only_models_that_want_it_get_normalised_audio(
    manifest: Manifest, architecture: Architecture
) -> None:
    batch = ctc(architecture)(manifest, waves(manifest), part_of(manifest, [4]))
    raw = waves(manifest)(4)
    if architecture.normalize:
        assert batch.wave_BS.mean().item() == pytest.approx(0, abs=1e-4)
        assert batch.wave_BS.var().item() == pytest.approx(1, abs=0.05)
    else:
        assert np.array_equal(batch.wave_BS[0].numpy(), raw)


def test_all_rows_have_the_same_number_of_masked_frames_and_it_is_known(
    manifest: Manifest,
) -> None:
    for batch in every_batch(manifest, pretraining()):
        assert batch.mask_BT is not None
        frames = int(frames_of(batch.wave_BS.shape[1], SMALL))
        assert batch.mask_BT.shape == (len(batch.rows), frames)
        assert (batch.mask_BT.sum(1) == batch.masked).all()
        assert batch.masked >= 2


def test_audio_too_short_to_mask_is_an_error_that_names_the_row(manifest: Manifest) -> None:
    short = [np.ones(9_000, np.float32), np.ones(720, np.float32)]  # the second has two frames
    with pytest.raises(DataError, match="2 frames") as caught:
        pretraining()(manifest, lambda row: short[row], part_of(manifest, [0, 1]))
    assert caught.value.where == "u1"
    assert "min_seconds" in caught.value.hint


def test_channel_masks_cover_spans_of_channels_when_asked_for(manifest: Manifest) -> None:
    part = part_of(manifest, list(range(24)))
    batch = pretraining()(manifest, waves(manifest), part)
    assert batch.channel_mask_BD is not None
    assert batch.channel_mask_BD.shape == (24, SMALL.width)
    assert 0.2 < batch.channel_mask_BD.float().mean().item() < 0.6
    assert batch.channel_mask_BD.sum(1).min() >= MASK.channel_length
    # from a stream of its own: the mask over time says nothing about it
    want = span_mask(
        batch.key_B, torch.full((24,), 64), 64, 0.5, 8, min_spans=0, purpose=masking.CHANNELS
    )
    assert torch.equal(batch.channel_mask_BD, want)
    plain = partial(pretrain_batch, architecture=SMALL, mask=MaskConfig(), max_seconds=1.2)
    assert plain(manifest, waves(manifest), part).channel_mask_BD is None


# -- CTC -----------------------------------------------------------------------------------------


def test_utterances_are_whole_and_zero_padded_with_their_labels(manifest: Manifest) -> None:
    tokens = Tokens()
    rows = [3, 17, 8]
    batch = ctc()(manifest, waves(manifest), part_of(manifest, rows))
    assert batch.samples_B is not None
    assert batch.target_BL is not None
    assert batch.labels_B is not None
    assert batch.rows == rows
    for i, row in enumerate(rows):
        wave, labels = waves(manifest)(row), tokens.encode(manifest.rows[row].text or "")
        assert batch.samples_B[i] == len(wave)
        assert np.array_equal(batch.wave_BS[i, : len(wave)].numpy(), wave)
        assert not batch.wave_BS[i, len(wave) :].any()
        assert batch.target_BL[i, : batch.labels_B[i]].tolist() == labels
    assert batch.seconds == pytest.approx(sum(manifest.rows[row].duration for row in rows))
    assert batch.wave_BS.shape[1] == batch.samples_B.max()


def test_rows_of_one_length_have_no_padding_to_speak_of(manifest: Manifest) -> None:
    wave = np.ones(8_000, np.float32)
    batch = ctc()(manifest, lambda _: wave, part_of(manifest, [0, 1]))
    assert batch.samples_B is None
    assert batch.seconds == 1.0


def test_padded_frames_are_never_masked_and_a_mask_does_not_depend_on_the_batch(
    manifest: Manifest,
) -> None:
    part = part_of(manifest, list(range(24)))
    batch = ctc()(manifest, waves(manifest), part)
    assert batch.mask_BT is not None
    assert batch.samples_B is not None
    frames_B = frames_of(batch.samples_B, SMALL)
    assert not (batch.mask_BT & (torch.arange(batch.mask_BT.shape[1]) >= frames_B[:, None])).any()
    assert (batch.mask_BT.sum(1) >= 11).all()  # two spans of ten frames at least
    for i, frames in enumerate(frames_B.tolist()):
        alone = ctc()(manifest, waves(manifest), part_of(manifest, [i]))
        assert alone.mask_BT is not None
        assert torch.equal(alone.mask_BT[0], batch.mask_BT[i, :frames])
        assert alone.channel_mask_BD is not None
        assert torch.equal(alone.channel_mask_BD, batch.channel_mask_BD[i : i + 1])  # type: ignore[index]


def test_without_a_mask_or_with_probability_0_nothing_is_masked(manifest: Manifest) -> None:
    part = part_of(manifest, [1, 2])
    for mask in (None, MaskConfig(probability=0.0)):
        batch = ctc(mask=mask)(manifest, waves(manifest), part)
        assert batch.mask_BT is None
        assert batch.channel_mask_BD is None


def test_labels_that_are_not_in_the_alphabet_are_an_error(tmp_path: Path) -> None:
    manifest = Manifest(tmp_path / "m.jsonl", [Utterance("u", "u.wav", 1.0, text="ÉTÉ")], "")
    with pytest.raises(DataError, match="É"):
        ctc()(manifest, lambda _: np.ones(8_000, np.float32), part_of(manifest, [0]))


def test_the_mask_of_a_crop_is_the_span_mask_of_its_key(manifest: Manifest) -> None:
    part = part_of(manifest, [5])
    batch = pretraining()(manifest, waves(manifest), part)
    frames = int(frames_of(batch.wave_BS.shape[1], SMALL))
    want = span_mask(
        torch.from_numpy(part.keys), torch.tensor([frames]), frames, MASK.probability, MASK.length
    )
    assert batch.mask_BT is not None
    assert torch.equal(batch.mask_BT, want)  # a row alone is not equalised
