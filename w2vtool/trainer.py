"""The training loop, for pre-training, CTC and plug-ins alike.

Goes in: a model, an objective (``objective(model, batch, step) -> Loss``), a plan with its batches,
and where to report. Goes out: a trained model and its checkpoints. An update is the sum of the
gradients of ``bins`` micro-batches over all processes, divided once by the sum of their counts; so
micro-batches, accumulation and processes give the same step. Everything random comes from keys of
the plan, and all that is not in the weights is in the checkpoint's state, so that a resumed run is
the run that never stopped, its metrics included.

Why nothing waits for the device between two lines of metrics: counts, skipped updates and what
signals ask for are added up there, and read when a line is due (signals, and how many updates in a
row were skipped: one update later).
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from w2vtool import checkpoint, sharding
from w2vtool.batches import Batch
from w2vtool.device import add_up, add_up_gradients, autocast, send
from w2vtool.errors import CheckpointError, DataError, Stopped
from w2vtool.feed import BinNumbers, Pass, Split, check_files, loader_errors, read
from w2vtool.guards import GuardConfig, Guards, Quarantine
from w2vtool.losses import Loss
from w2vtool.metrics import Alarms, Ratios, Recorder, Report
from w2vtool.model import regions
from w2vtool.optim import adamw, learning_rate
from w2vtool.run import jsonable
from w2vtool.schema import LoopConfig, OptimConfig
from w2vtool.signals import Wishes
from w2vtool.sinks import outlets
from w2vtool.validation import validate
from w2vtool.writer import Writer

log = logging.getLogger(__name__)


class Objective(Protocol):
    """What is minimised. ``model`` is in training mode, or in evaluation mode for validation.

    With a method ``prepare(model, step)``, that is called before each update: to freeze and thaw.
    With a number ``chance``, the loss ``contrastive`` of guessing, staying there is an alarm.
    """

    def __call__(self, model: nn.Module, batch: Batch, step: int) -> Loss:
        """The loss of one micro-batch at update ``step``."""
        ...


@dataclass
class Training:
    """One training run: what ``train`` needs, and how far it is."""

    model: nn.Module
    spec: checkpoint.Spec
    objective: Objective
    train: Split
    valid: Split | None
    loop: LoopConfig
    optim: OptimConfig
    folder: Path  # of the checkpoints
    device: torch.device
    rank: int = 0
    world: int = 1
    best_metric: str = "loss"
    guard: GuardConfig = field(default_factory=GuardConfig)
    bad_files: Literal["replace", "stop"] = "replace"
    tensorboard: bool = False
    history: list[dict[str, Any]] = field(default_factory=list)  # of the weights it starts from
    done: int = 0
    saved: int = 0  # the step of the newest checkpoint
    due: bool = False  # whether this step is yet to be validated
    best_steps: list[tuple[float, int]] = field(default_factory=list)  # value, step; best first
    validated: dict[str, float] = field(default_factory=dict)  # the last validation
    waited: float = 0.0  # seconds for batches, by this process

    def __post_init__(self) -> None:
        self.model.to(self.device)
        if self.loop.recompute:
            regions.recompute(self.model)
        if self.loop.compile:
            regions.compile_regions(self.model)
        self.sharded = self.loop.shard and self.world > 1
        if self.sharded:
            sharding.shard(self.model, self.device)
        self.optimizer = adamw([p for p in self.model.parameters() if p.requires_grad], self.optim)
        self.window = Ratios()  # since the last line of metrics
        # seconds of audio heard and updates skipped, by all processes
        self.tally = torch.zeros(2, dtype=torch.float64, device=self.device)
        self.wishes = Wishes(self.device)
        self.guards, self.alarms = Guards(self.guard, self.device), Alarms()
        self.quarantine = Quarantine(
            self.train.manifest, self.folder.parent, self.device, rank=self.rank
        )
        self.writer = Writer(
            self.folder,
            keep=self.loop.keep,
            keep_best=self.loop.keep_best,
            milestone_every=self.loop.milestone_every,
            threaded=self.loop.async_save,
        )
        if self.valid is not None:
            self.valid_pass = Pass(self.valid, self.loop, self.rank, self.world)

    @property
    def best_step(self) -> int | None:
        """The step with the best validation so far."""
        return self.best_steps[0][1] if self.best_steps else None

    @property
    def scheduled(self) -> bool:
        """Whether this step is saved in a run that nobody disturbs."""
        loop = self.loop
        milestone = loop.milestone_every and self.done % loop.milestone_every == 0
        best = any(step == self.done for _, step in self.best_steps)
        return bool(milestone or best or self.done % loop.save_every == 0)

    def save(self) -> None:
        """Begin to write a checkpoint (rank 0); all processes call it."""
        seconds, skipped = self.tally.tolist()
        self.quarantine.meet()
        state = {
            "seconds": seconds,
            "skipped": int(skipped),
            "window": self.window.total(self.device),
            "due": self.due,
            "best_steps": self.best_steps,
            "validated": self.validated,
            "guards": self.guards.state(self.done, scheduled=self.scheduled),
            "quarantine": self.quarantine.state(),
            "seed": self.loop.seed,
            "bins": self.loop.bins,
            "manifest": self.train.manifest.sha256,
            "history": self.history,
        }
        self.saved = self.done
        self.wishes.saved()
        if self.rank:
            if self.sharded:  # the first process needs the parts that are here
                checkpoint.tensors_of(self.model, self.optimizer)
            return
        self.writer.save(
            self.done,
            self.model,
            self.spec,
            optimizer=self.optimizer,
            state=jsonable(state),
            protected=self.guards.anchors,
        )

    def resume(self) -> None:
        """Go back to the newest checkpoint that verifies; without any, start at 0.

        Raises CheckpointError when all are damaged, or belong to another model or vocabulary, or
        when the processes do not find the same one.
        """
        if any(self.folder.glob("step-*")):
            self._resume()
        steps = add_up(torch.tensor([self.done], dtype=torch.float64, device=self.device))
        if steps.item() != self.done * self.world:
            raise CheckpointError(
                f"this process can go on at update {self.done}, another one cannot",
                where=str(self.folder),
                hint="every host must see the same folder; start again when it does",
            )

    def _resume(self) -> None:
        loaded = checkpoint.load(self.folder, best=False)
        parts = ("kind", "architecture", "tokens", "case", "punctuation", "apostrophes")
        differ = [p for p in parts if getattr(loaded.spec, p) != getattr(self.spec, p)]
        if differ:
            raise CheckpointError(
                f"the run was started with another {', '.join(differ)}",
                where=str(loaded.path),
                hint="resume with the settings of the first run, or start a new one",
            )
        self._load(loaded)
        try:
            self._take(loaded.state)
        except (KeyError, TypeError, ValueError) as exc:
            what = f"the state of the training cannot be read ({exc!r})"
            hint = "start a new run from its weights with model.init"
            raise CheckpointError(what, where=str(loaded.path), hint=hint) from exc
        now = {"manifest": self.train.manifest.sha256, "seed": self.loop.seed}
        for key, value in (now | {"bins": self.loop.bins}).items():
            if loaded.state.get(key, value) != value:
                log.warning("%s has changed since %s was saved", key, loaded.path)
        log.info("resumed at update %d from %s", self.done, loaded.path)

    def _load(self, loaded: checkpoint.Checkpoint) -> None:
        checkpoint.load_weights(self.model, loaded.weights, str(loaded.path))
        checkpoint.load_optimizer(loaded.path, self.model, self.optimizer)

    def roll_back(self) -> None:
        """Take the weights and the optimizer of an older checkpoint; the data and the rate go on.

        Why the data does: what spoilt the weights would come again. Raises Diverged when there is
        no checkpoint to go back to, or that was done too often.
        """
        self.writer.wait()
        add_up(torch.zeros(1, device=self.device))  # no process reads before the first has written
        while True:
            step = self.guards.anchor(self.done)
            try:
                loaded = checkpoint.load(self.folder / f"step-{step:08d}")
            except CheckpointError as exc:
                log.warning("%s: %s; taking another one", exc.where, exc.what)
                self.guards.anchors.remove(step)
            else:
                break
        self._load(loaded)
        self.guards.went_back(loaded.state["guards"])
        log.warning(
            "update %d: %d updates in a row were skipped; the weights are those of update %d again",
            self.done,
            self.guard.patience,
            step,
        )

    def _take(self, state: Mapping[str, Any]) -> None:
        """Be as far as ``state`` says; JSON has null for NaN and infinity."""
        self.done = self.saved = int(state["step"])
        self.tally[0], self.tally[1] = state["seconds"], state["skipped"]
        mine = 0.0 if self.rank else 1.0  # the sums of all processes, kept by the first
        self.window = Ratios(
            {
                name: (mine * _number(over), mine * _number(under))
                for name, (over, under) in state["window"].items()
            }
        )
        self.due = bool(state["due"])
        older = [(state["best"], state["best_step"])] if state.get("best_step") else []
        self.best_steps = [(float(v), int(at)) for v, at in state.get("best_steps", older)]
        self.validated = {name: _number(value) for name, value in state["validated"].items()}
        self.guards.take(state["guards"])
        self.quarantine.take(state["quarantine"])

    def update(self, batches: Iterator[Batch], stop: Any) -> Tensor | None:
        """One optimizer update; gives the gradient norm.

        A gradient that is not finite, or a spike, changes nothing but what is counted; that is
        decided on the device (``found_inf`` of the fused optimizer), without asking it. Alone, a
        process leaves in the middle of an update when a signal comes: None, as if never begun.
        """
        self._prepare()
        with regions.once_an_update(self.model, hold=not self.sharded) as once:
            sums = self._accumulate(batches, stop)
            if sums is None:
                return None
            add_up_gradients(once.leaves, summed=self.sharded)
            once.settle()
        shared = add_up(torch.cat([sums, self.wishes.mine(stop)]))
        learned = [p.grad for p in self.model.parameters() if p.grad is not None]
        gradients = [sharding.local(gradient) for gradient in learned]
        torch._foreach_div_(gradients, shared[0].clamp(min=1).float())
        norm = sharding.total_norm(gradients, sharded=self.sharded)
        if self.optim.clip:
            torch._foreach_mul_(gradients, (self.optim.clip / (norm + 1e-6)).clamp(max=1))
        skip = self.guards.judge(norm, len(gradients))
        self.optimizer.found_inf = skip  # type: ignore[attr-defined]
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.tally += torch.stack([shared[1], skip.double()])
        self.quarantine.counts += shared[2:4]
        self.wishes.heed(shared[4:])
        self.done += 1
        return norm

    def _accumulate(self, batches: Iterator[Batch], stop: Any) -> Tensor | None:
        """Gradients of this process's micro-batches; gives their count, seconds, rows, lost rows.

        None when a signal came.
        """
        before, lost = Ratios(self.window.sums), list[tuple[int, str]]()
        heard, rows = 0.0, 0
        count: Tensor | float = 0.0
        for _ in range(self.rank, self.loop.bins, self.world):
            if self.world == 1 and stop.signal:
                self.optimizer.zero_grad(set_to_none=True)
                self.window = before
                self.wishes.heed(self.wishes.mine(stop))
                return None
            began = time.monotonic()
            batch = next(batches)
            self.waited += time.monotonic() - began
            heard += batch.seconds  # before it is on the device, which would have to be asked
            rows, lost = rows + len(batch.rows), lost + list(batch.lost)
            batch = batch.to(self.device)
            torch.manual_seed(batch.key)  # dropout: the same wherever and whenever this bin runs
            with autocast(self.device, self.loop.precision):
                loss = self.objective(self.model, batch, self.done)
            loss.total.backward()
            count = count + loss.count
            self.window.add(loss)
        self.quarantine.met(lost)
        sums = send([0.0, heard, rows, len(lost)], self.device)
        sums[0] += count
        return sums

    def _prepare(self) -> None:
        """Set the learning rate, and let the objective freeze or thaw parts of the model."""
        rate = learning_rate(self.done, self.loop.updates, self.optim)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        prepare: Callable[[nn.Module, int], None] | None = getattr(self.objective, "prepare", None)
        if prepare is not None:
            prepare(self.model, self.done)

    @property
    def signal(self) -> int | None:
        """The signal to stop for, which any process got."""
        return self.wishes.signal


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)


def train(job: Training, recorder: Recorder) -> dict[str, float]:
    """Run ``job`` to its last update; gives the last validation.

    A checkpoint is written every ``save_every`` updates, at the best step, at the end, and when a
    signal asks for it. Raises Stopped after saving, when that signal was one to stop; DataError
    when files cannot be read, Diverged when updates are skipped again and again.
    """
    if job.valid is not None and job.rank == 0:
        check_files(job.valid)
    with loader_errors(), job.writer, outlets(job, recorder) as out:
        return _train(job, out)


def _train(job: Training, recorder: Recorder) -> dict[str, float]:
    loop = job.loop
    with recorder.progress(loop.updates, job.spec.kind, "updates") as bar:
        numbers = BinNumbers(job.done, loop.updates, loop.bins, job.rank, job.world, job.train.plan)
        batches = read(
            job.train,
            numbers,
            loop,
            pin=job.device.type == "cuda",
            stand_in=job.bad_files == "replace",
        )
        report = Report(job, recorder, bar)
        job.model.train()
        while True:
            with report.pause():
                best = False
                if job.due and job.signal is None:
                    try:
                        best = validate(job, recorder)
                    except DataError:  # audio has gone since the start
                        if job.world == 1 and job.saved != job.done:
                            job.save()
                        raise
                    report.show()
                last = job.done >= loop.updates
                wanted = last or job.scheduled or job.signal or job.wishes.save
                if best or (wanted and job.saved != job.done):
                    job.save()
            if job.signal is not None and (job.due or not last):
                raise Stopped(job.signal)
            if last:
                return job.validated
            norm = job.update(batches, recorder.stop)
            if norm is not None:
                if job.guards.impatient:
                    job.roll_back()
                report.after(norm)
                last = job.done >= loop.updates
                job.due = job.valid is not None and (job.done % loop.valid_every == 0 or last)
