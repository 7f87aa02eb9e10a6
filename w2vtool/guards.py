"""What keeps a long run from being spoilt: bad updates are skipped and undone, bad files set aside.

Goes in: the gradient norm of every update, and the rows whose audio could not be read. Goes out:
whether the update counts, which checkpoint to go back to, and ``quarantine.jsonl``. An update whose
gradient is not finite, or is many times the usual, is skipped. After ``patience`` of those in a row
the weights and the optimizer go back to a checkpoint, the data goes on, so that what spoilt them
does not come again; when that has not helped a few times, the run ends with ``Diverged``.

Why a resumed run does the same: all that is judged by, and which checkpoints it may go back to, is
in the state of a checkpoint; none of it depends on when a run was stopped, only on the updates.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from w2vtool.errors import DataError, UserError
from w2vtool.manifest import Manifest
from w2vtool.schema import GuardConfig

log = logging.getLogger(__name__)
MEMORY = 100  # accepted updates that the usual gradient norm is an average of, or so
ANCHORS = 2  # checkpoints that can be gone back to: as many as every run keeps
TOLERATED = 10  # fewer bad files than this never end a run
SHOWN = 20  # bad files that an error names


class Diverged(UserError):
    """Updates are skipped again and again, and going back does not help."""

    exit_code = 6


class Later:
    """Numbers from the device, given to the host one call later, which never waits for them."""

    def __init__(self, *first: float) -> None:
        self._copy = torch.tensor(first, dtype=torch.float64)
        self._event: torch.cuda.Event | None = None

    def swap(self, new: Tensor) -> list[float]:
        """Send ``new`` on its way; gives what was sent the time before."""
        if self._event is not None:
            self._event.synchronize()
        known: list[float] = self._copy.tolist()
        self._copy, self._event = new.to("cpu", non_blocking=True, copy=True), None
        if new.device.type == "cuda":
            self._event = torch.cuda.Event()
            self._event.record()
        return known


class Guards:
    """Judges updates, on the device and without asking it; the same in all processes."""

    # what is counted on the device: the usual norm, the updates that it is made of, skipped ones
    # in a row, spikes so far, and accepted updates since the last line of metrics
    NUMBERS = ("usual", "accepted", "streak", "spikes", "fresh")

    def __init__(self, config: GuardConfig, device: torch.device) -> None:
        self.config = config
        self.numbers = torch.zeros(len(self.NUMBERS), dtype=torch.float64, device=device)
        self.parts = 0  # gradients that the norm is of
        self.rollbacks = 0
        self.tried = 0  # anchors gone back to since the newest of them was written
        self.anchors: list[int] = []  # steps of checkpoints that can be gone back to, newest last
        self._later, self._streak = Later(0.0), 0.0

    def judge(self, norm: Tensor, parts: int) -> Tensor:
        """1.0 where the update is to be skipped, as ``found_inf`` of an optimizer, else 0.0.

        ``parts`` is the number of gradients: when other parameters learn than before, their usual
        norm is learned anew.
        """
        if parts != self.parts:
            self.parts = parts
            self.numbers[:2] = 0.0
        usual, accepted, streak, spikes, fresh = self.numbers
        value = norm.detach().double()
        finite = torch.isfinite(value)
        spike = torch.zeros_like(finite)
        if self.config.spike_factor:
            judged = finite & (accepted >= self.config.spike_warmup) & (usual > 0)
            spike = judged & (value > self.config.spike_factor * usual)
        good = finite & ~spike
        share = 1 / (accepted + 1).clamp(max=MEMORY)
        usual = torch.where(good, usual + share * (value - usual), usual)
        streak = (streak + 1) * ~good
        self.numbers = torch.stack([usual, accepted + good, streak, spikes + spike, fresh + good])
        (self._streak,) = self._later.swap(streak[None])
        return (~good).float()

    @property
    def impatient(self) -> bool:
        """Whether it is time to go back: as of the update before this one, on every device."""
        return self._streak >= self.config.patience

    def line(self) -> dict[str, float]:
        """The numbers, for a line of metrics: waits for the device, and begins a new line."""
        found = dict(zip(self.NUMBERS, self.numbers.tolist(), strict=True))
        self.numbers[-1] = 0.0
        return found

    def state(self, step: int, *, scheduled: bool) -> dict[str, Any]:
        """For the checkpoint of ``step``, which can be gone back to if it is ``scheduled``.

        Why not to any: a resumed run must go back to where one goes that nobody stopped.
        """
        numbers = dict(zip(self.NUMBERS, self.numbers.tolist(), strict=True))
        if scheduled and not numbers["streak"] and step not in self.anchors:
            self.anchors, self.tried = [*self.anchors, step][-ANCHORS:], 0
        return {
            **numbers,
            "parts": self.parts,
            "rollbacks": self.rollbacks,
            "tried": self.tried,
            "anchors": self.anchors,
        }

    def take(self, state: Mapping[str, Any]) -> None:
        """Be as far as ``state`` says."""
        self._set([state[name] for name in self.NUMBERS], int(state["parts"]))
        self.rollbacks, self.tried = int(state["rollbacks"]), int(state["tried"])
        self.anchors = [int(step) for step in state["anchors"]]

    def anchor(self, done: int) -> int:
        """The step to go back to: the newest, the one before it if that has not helped.

        Raises Diverged when there is none, or too many were tried.
        """
        if self.anchors and self.rollbacks < self.config.rollbacks:
            return self.anchors[-1 - min(self.tried, len(self.anchors) - 1)]
        why = "there is no checkpoint to go back to"
        if self.anchors:
            why = f"the weights went back to a checkpoint {self.rollbacks} times before"
        raise Diverged(
            f"update {done}: {self.config.patience} updates in a row were skipped, and {why}",
            hint="lower optim.lr or set optim.clip, and go on with --resume; where gradients are "
            "only larger than they were (train/spikes), raise loop.guard.spike_factor",
        )

    def went_back(self, state: Mapping[str, Any]) -> None:
        """Expect what was usual when the checkpoint of this ``state`` was written."""
        spikes, fresh = self.numbers.tolist()[3:]
        self._set([state["usual"], state["accepted"], 0.0, spikes, fresh], int(state["parts"]))
        self.rollbacks, self.tried = self.rollbacks + 1, self.tried + 1

    def _set(self, numbers: list[float], parts: int) -> None:
        self.numbers.copy_(torch.tensor(numbers, dtype=torch.float64))
        self.parts = parts
        self._streak = numbers[2]
        self._later = Later(self._streak)


class Quarantine:
    """Rows whose audio could not be read in training; after ``meet`` the same in all processes."""

    def __init__(
        self, manifest: Manifest, folder: Path, device: torch.device, *, rank: int = 0
    ) -> None:
        self.manifest, self.rank = manifest, rank
        self.path = folder / "quarantine.jsonl"
        self.ids: dict[str, str] = {}  # of the rows, and why
        # rows that all processes took, and those of them for which another row stood in
        self.counts = torch.zeros(2, dtype=torch.float64, device=device)
        self.replaced = 0.0  # when the processes last told each other
        self._mine: dict[str, dict[str, str]] = {}  # by id: lines of this process, since then

    def met(self, lost: Iterable[tuple[int, str]]) -> None:
        """Take note of rows that this process could not read."""
        for number, why in lost:
            row = self.manifest.rows[number]
            path = str(self.manifest.audio_path(row))
            if row.id not in self.ids:
                self._mine.setdefault(row.id, {"id": row.id, "path": path, "reason": why})

    def meet(self) -> None:
        """Learn what the other processes met; warn of what is new, and write it down."""
        replaced = self.counts[1].item()
        if replaced == self.replaced:
            return
        self.replaced = replaced
        parts: list[Any] = [self._mine]
        if dist.is_available() and dist.is_initialized():
            parts = [None] * dist.get_world_size()
            dist.all_gather_object(parts, self._mine)
        found = {name: line for part in parts for name, line in part.items()}
        new = [found[name] for name in sorted(found) if name not in self.ids]
        self._mine = {}
        self.ids |= {line["id"]: line["reason"] for line in new}
        for line in new[:SHOWN]:
            log.warning(
                "%s (%s): %s; another one stands in", line["id"], line["path"], line["reason"]
            )
        if len(new) > SHOWN:
            log.warning("… and for %d more, listed in %s", len(new) - SHOWN, self.path)
        if self.rank == 0 and new:
            self._write(new)

    def check(self, share: float, utterances: int) -> None:
        """Raise DataError when more than ``share`` of the rows taken so far could not be read.

        ``utterances`` is the number of all rows: many epochs do not meet more than these.
        """
        taken = min(self.counts[0].item(), utterances)
        if len(self.ids) < TOLERATED or len(self.ids) <= share * taken:
            return
        shown = [f"{name}: {why}" for name, why in list(self.ids.items())[:SHOWN]]
        rest = len(self.ids) - len(shown)
        raise DataError(
            "\n  ".join(
                [
                    f"{len(self.ids)} of {taken:.0f} utterances cannot be read",
                    *shown,
                    *([f"… and {rest} more, in {self.path}"] if rest else []),
                ]
            ),
            where=str(self.manifest.path),
            hint="repair or leave them out, then --resume; or raise loop.guard.bad_share",
        )

    def state(self) -> dict[str, Any]:
        """For a checkpoint."""
        taken, replaced = self.counts.tolist()
        return {"ids": self.ids, "taken": taken, "replaced": replaced}

    def take(self, state: Mapping[str, Any]) -> None:
        """Be as far as ``state`` says."""
        self.ids = {str(name): str(why) for name, why in state["ids"].items()}
        self.replaced = float(state["replaced"])
        self.counts.copy_(torch.tensor([state["taken"], self.replaced], dtype=torch.float64))

    def _write(self, new: Iterable[Mapping[str, str]]) -> None:
        """Append what the file does not have yet: a run that crashed may have written it before."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            old = self.path.read_text(encoding="utf-8") if self.path.exists() else ""
            torn = "\n" if old and not old.endswith("\n") else ""
            lines = [json.dumps(line, ensure_ascii=False) + "\n" for line in new]
            with self.path.open("a", encoding="utf-8") as file:
                file.write(torn + "".join(line for line in lines if line not in old))
        except OSError as error:  # the run is worth more than the list
            log.warning("%s cannot be written (%s)", self.path, error.strerror)
