"""Exact: the same batches for any workers and processes, the same run for any stop and resume."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from signal import SIGTERM
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import toys
from torch import Tensor, nn

from w2vtool import checkpoint, device, feed, manifest, training
from w2vtool.architecture import Architecture, Dropouts
from w2vtool.batches import Batch, ctc_batch, pretrain_batch
from w2vtool.errors import Stopped
from w2vtool.feed import BinNumbers, Split
from w2vtool.model import encoder
from w2vtool.objectives import Contrastive, Ctc
from w2vtool.plan import Bin
from w2vtool.run import Run, Stop
from w2vtool.schema import LoopConfig, MaskConfig, ObjectiveConfig, OptimConfig
from w2vtool.trainer import Training

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning"),
]
UPDATES = 8
LOOP = LoopConfig(
    updates=UPDATES, bin_seconds=3, bins=2, log_every=3, valid_every=4, save_every=100, device="cpu"
)
DROP = Dropouts(hidden=0.1, attention=0.1, input=0.1, features=0.1, layer_drop=0.3)
MASK = MaskConfig(probability=0.65, length=4, channel_length=4)
PLACE = training.Place(torch.device("cpu"), 0, 1)
KINDS = ("pretrain", "ctc")


def collate(kind: str, architecture: Architecture, *, masked: bool = True) -> Any:
    if kind == "pretrain":
        return partial(pretrain_batch, architecture=architecture, mask=MASK, max_seconds=2.0)
    mask = MASK if masked else None
    return partial(ctc_batch, architecture=architecture, tokens=toys.TOKENS, mask=mask)


def split(kind: str, corpus: Path, name: str, loop: LoopConfig, architecture: Any = None) -> Split:
    made = collate(kind, architecture or toys.TINY, masked=name == "train")
    opened = manifest.read(corpus / f"{name}.jsonl")
    return training.split(opened, loop, made, crop=kind == "pretrain")


def objective(kind: str, corpus: Path, layer_drop: float, **changes: Any) -> Any:
    if kind == "pretrain":
        return Contrastive(ObjectiveConfig(negatives=5, **changes), layer_drop)
    opened = manifest.read(corpus / "valid.jsonl")
    return Ctc(toys.TOKENS, opened, "upper", 0, 1.0, layer_drop)


def spec(kind: str, architecture: Architecture = toys.TINY) -> checkpoint.Spec:
    return checkpoint.Spec(kind, architecture, toys.TOKENS if kind == "ctc" else None)


# -- the stream of batches -----------------------------------------------------------------------


def digest(batches: Iterable[Batch]) -> str:
    """Of every byte of every field, in order."""
    out = hashlib.sha256()
    for batch in batches:
        for name, value in sorted(vars(batch).items()):
            out.update(name.encode())
            if isinstance(value, Tensor):
                out.update(f"{value.dtype} {tuple(value.shape)}".encode())
                value = value.contiguous().numpy().tobytes()
            out.update(value if isinstance(value, bytes) else repr(value).encode())
    return out.hexdigest()


@pytest.mark.filterwarnings("ignore:This DataLoader will create 4 worker processes:UserWarning")
@pytest.mark.parametrize("kind", KINDS)
def test_the_stream_of_batches_is_byte_identical_for_any_number_of_workers(
    kind: str, toy_corpus: Path
) -> None:
    part = split(kind, toy_corpus, "train", LOOP)
    numbers = BinNumbers(1, 7, LOOP.bins, 0, 1)  # two epochs and a half
    streams = [
        digest(feed.read(part, numbers, LOOP.model_copy(update={"workers": workers})))
        for workers in (0, 1, 2, 4)
    ]
    assert len(set(streams)) == 1
    assert digest(feed.read(part, BinNumbers(2, 7, 2, 0, 1), LOOP)) != streams[0]


@pytest.mark.parametrize("world", [1, 2, 4])
def test_processes_hear_together_what_one_hears_in_every_update(
    world: int, toy_corpus: Path
) -> None:
    plan = split("pretrain", toy_corpus, "train", LOOP).plan
    bins = 4
    streams = [list(BinNumbers(0, UPDATES, bins, rank, world)) for rank in range(world)]
    share = bins // world
    for update in range(UPDATES):
        part = slice(update * share, (update + 1) * share)
        heard = [n for stream in streams for n in stream[part]]
        together = sorted((row, key) for n in heard for row, key in rows(plan.bin(n)))
        alone = range(update * bins, (update + 1) * bins)
        assert together == sorted((row, key) for n in alone for row, key in rows(plan.bin(n)))


def rows(part: Bin) -> list[tuple[int, int]]:
    return list(zip(part.rows.tolist(), part.keys.tolist(), strict=True))


# -- stopping and going on -----------------------------------------------------------------------


class StoppingRun(Run):
    """A run that gets a signal after some update, and shows no progress."""

    at: int | None = None

    @contextmanager
    def progress(self, total: float, what: str, unit: str = "") -> Iterator[Any]:
        yield SimpleNamespace(update=self.shown)

    def shown(self, done: float, **fields: object) -> None:
        if done == self.at:
            self.stop.signal = SIGTERM


def fit(kind: str, corpus: Path, folder: Path, *, at: int | None = None, **loop: Any) -> Any:
    """Train in ``folder``, from where it is; until update ``at``, or to the end."""
    settings = LOOP.model_copy(update=loop)
    start = training.Start(spec(kind), {}, [])
    with StoppingRun(kind, folder, resume=True, json_only=True) as run:
        run.at = at
        return training.fit(
            run,
            PLACE,
            model=training.build(start, DROP, seed=3),
            start=start,
            objective=objective(kind, corpus, 0.3),
            splits={name: split(kind, corpus, name, settings) for name in ("train", "valid")},
            loop=settings,
            optim=OptimConfig(lr=3e-3, clip=1.0),
            best_metric="wer" if kind == "ctc" else "loss",
        )


def left(folder: Path) -> tuple[dict[str, bytes], list[dict[str, Any]]]:
    """What a finished run leaves: its last checkpoint, and its metrics but for what time says."""
    newest = checkpoint.find(folder, best=False)
    assert newest.name == f"step-{UPDATES:08d}"
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    timeless = [
        {k: v for k, v in line.items() if k != "time" and not k.startswith("speed/")}
        for line in lines
    ]
    return {path.name: path.read_bytes() for path in newest.iterdir()}, timeless


@pytest.mark.parametrize(
    ("kind", "workers", "stops"),
    [(kind, 0, range(1, UPDATES)) for kind in KINDS] + [(kind, 2, (1, 4, 6)) for kind in KINDS],
)
def test_a_run_stopped_after_any_update_leaves_what_it_leaves_undisturbed(
    kind: str, workers: int, stops: Sequence[int], toy_corpus: Path, tmp_path: Path
) -> None:
    result = fit(kind, toy_corpus, tmp_path / "straight")
    undisturbed = left(tmp_path / "straight")
    for k in stops:
        folder = tmp_path / f"stopped-{k}"
        with pytest.raises(Stopped):
            fit(kind, toy_corpus, folder, at=k, workers=workers)
        assert checkpoint.find(folder, best=False).name == f"step-{k:08d}"
        again = fit(kind, toy_corpus, folder, workers=workers)
        assert left(folder) == undisturbed, k
        assert again | {"checkpoint": ""} == result | {"checkpoint": ""}


def test_hours_an_update_make_the_run_that_their_bins_make(
    toy_corpus: Path, tmp_path: Path
) -> None:
    plan = split("ctc", toy_corpus, "train", LOOP).plan
    hours = 2.1 * plan.seconds / plan.bins_per_epoch / 3600
    fit("ctc", toy_corpus, tmp_path / "bins")
    with pytest.raises(Stopped):
        fit("ctc", toy_corpus, tmp_path / "hours", at=3, bins=0, batch_hours=hours)
    fit("ctc", toy_corpus, tmp_path / "hours", bins=0, batch_hours=hours)
    assert left(tmp_path / "hours") == left(tmp_path / "bins")
    assert json.loads((tmp_path / "hours" / "run.json").read_text())["notes"]["bins"] == 2


# -- gradients -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Enough utterances for buckets of several lengths."""
    folder = tmp_path_factory.mktemp("lengths")
    toys.corpus(folder, "train", 40, seed=1)
    toys.corpus(folder, "valid", 1, seed=2)
    return folder


BINS = 4
# norm per frame, so that padding and neighbours change nothing
SIZES = toys.TINY.model_copy(update=toys.LV60K)


class Together:
    """Threads in the place of processes: what ``device`` asks of torch.distributed."""

    def __init__(self, world: int) -> None:
        self.barrier = threading.Barrier(world, timeout=30)
        self.rank = threading.local()
        self.given: list[Any] = [None] * world

    def is_available(self) -> bool:
        return True

    def is_initialized(self) -> bool:
        return len(self.given) > 1

    def all_reduce(self, values: Tensor) -> None:
        self.given[self.rank.number] = values.clone()
        self.barrier.wait()
        total = torch.stack(self.given).sum(0)
        self.barrier.wait()
        values.copy_(total)

    def run(self, work: Callable[[int], Tensor]) -> list[Tensor]:
        """``work(rank)`` of every rank, at the same time."""

        def one(rank: int) -> Tensor:
            self.rank.number = rank
            return work(rank)

        with ThreadPoolExecutor(len(self.given)) as threads:
            return list(threads.map(one, range(len(self.given))))


def parts(kind: str, corpus: Path, loop: LoopConfig) -> list[Batch]:
    part = split(kind, corpus, "train", loop, SIZES)
    return list(feed.read(part, range(BINS), loop))


def updated(kind: str, corpus: Path, folder: Path, loop: LoopConfig, world: int) -> list[Tensor]:
    """The gradient that the trainer makes of one update, by rank, in one vector each."""
    jobs = [
        Training(
            model=training.build(training.Start(spec(kind, SIZES), {}, []), Dropouts(), seed=3),
            spec=spec(kind, SIZES),
            objective=objective(kind, corpus, 0.0, **ADDITIVE),
            train=split(kind, corpus, "train", loop, SIZES),
            valid=None,
            loop=loop,
            optim=OptimConfig(clip=0, betas=(0.5, 0.9)),
            folder=folder,
            device=PLACE.device,
            rank=rank,
            world=world,
        )
        for rank in range(world)
    ]

    def one(rank: int) -> Tensor:
        job = jobs[rank]
        job.model.train()
        job.update(feed.read(job.train, BinNumbers(0, 1, BINS, rank, world), loop), Stop())
        moments = [job.optimizer.state[p]["exp_avg"].flatten() for p in job.model.parameters()]
        return torch.cat(moments) / 0.5  # of one update

    together = Together(world)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(device, "dist", together)
        return together.run(one)


# the diversity loss is a statistic of a micro-batch, as in fairseq, and so does not add up
ADDITIVE = {"diversity_weight": 0.0}


def gradient_of(kind: str, corpus: Path, batches: Sequence[Batch]) -> Tensor:
    """Of the sum over all batches, divided by their count, in one backward pass."""
    model = training.build(training.Start(spec(kind, SIZES), {}, []), Dropouts(), seed=3).train()
    made = objective(kind, corpus, 0.0, **ADDITIVE)
    losses = [made(model, batch, 0) for batch in batches]
    (sum(loss.total for loss in losses) / sum(int(loss.count) for loss in losses)).backward()
    return torch.cat(
        [(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in model.parameters()]
    )


def row(batch: Batch, index: int) -> Batch:
    """One utterance of a batch."""
    cut = {k: v[index : index + 1] for k, v in vars(batch).items() if isinstance(v, Tensor)}
    return replace(batch, **cut, rows=batch.rows[index : index + 1])


def joined(batches: Sequence[Batch]) -> Batch:
    """Batches of CTC as one, padded to the longest."""

    def cat(name: str) -> Tensor:
        rows = [r for batch in batches for r in getattr(batch, name)]
        return (
            nn.utils.rnn.pad_sequence(rows, batch_first=True)
            if rows[0].dim()
            else torch.stack(rows)
        )

    names = ("wave_BS", "samples_B", "key_B", "mask_BT", "target_BL", "labels_B")
    return replace(
        batches[0],
        **{name: cat(name) for name in names},
        rows=[r for batch in batches for r in batch.rows],
    )


def far(one: Tensor, other: Tensor) -> float:
    """How far two gradients are from each other, relative to their length."""
    return ((one - other).norm() / other.norm()).item()


@pytest.fixture
def products(monkeypatch: pytest.MonkeyPatch) -> None:
    """Convolutions as matrix products, which wide networks have.

    The library's add up the gradient of their weights in an order that depends on the batch, which
    alone makes 3e-6 in float32.
    """
    monkeypatch.setattr(encoder, "WIDE", 1)


@pytest.mark.usefixtures("products")
@pytest.mark.parametrize("kind", KINDS)
def test_micro_batches_accumulation_and_processes_make_the_gradient_of_one_batch(
    kind: str, corpus: Path, tmp_path: Path
) -> None:
    loop = LOOP.model_copy(update={"bins": BINS})
    batches = parts(kind, corpus, loop)
    single = [row(batch, i) for batch in batches for i in range(len(batch.rows))]
    if kind == "pretrain":
        assert len({batch.masked for batch in batches}) > 1, (
            "counts must differ, or a mean would do"
        )
    assert len({len(batch.rows) for batch in batches}) > 1
    alone = gradient_of(kind, corpus, single)  # every utterance a micro-batch of its own
    assert far(gradient_of(kind, corpus, batches), alone) <= 1e-6
    for world in (1, 2, 4):
        made = updated(kind, corpus, tmp_path, loop, world)
        assert all(torch.equal(gradient, made[0]) for gradient in made)
        assert far(made[0], alone) <= 1e-6, world


@pytest.mark.usefixtures("products")
def test_sub_batches_that_are_joined_make_the_same_gradient(corpus: Path) -> None:
    """What others do to have a large batch: join small ones, each padded to its own length."""
    batches = parts("ctc", corpus, LOOP)
    whole = joined([replace(b, samples_B=samples(b)) for b in batches])
    assert len({batch.wave_BS.shape[1] for batch in batches}) > 1
    apart = gradient_of("ctc", corpus, batches)
    assert far(gradient_of("ctc", corpus, [whole]), apart) <= 1e-6


def samples(batch: Batch) -> Tensor:
    if batch.samples_B is not None:
        return batch.samples_B
    return torch.full((len(batch.rows),), batch.wave_BS.shape[1])
