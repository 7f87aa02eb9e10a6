"""What signals ask of a run: the same in all its processes, whichever of them got the signal.

Goes in: the flags that signal handlers set in this process. Goes out: numbers that can be added up
over the processes with whatever else they tell each other, and what their sum asks for.
"""

from __future__ import annotations

from signal import SIGINT, SIGTERM
from typing import Any

import torch
from torch import Tensor

from w2vtool.device import send
from w2vtool.guards import Later


class Wishes:
    """What was asked of any process: to end, or to save."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._asked = torch.zeros(3, dtype=torch.float64)  # SIGTERM, SIGINT, save
        self._later = Later(0.0, 0.0, 0.0)

    @property
    def signal(self) -> int | None:
        """The signal to stop for."""
        return SIGTERM if self._asked[0] else SIGINT if self._asked[1] else None

    @property
    def save(self) -> bool:
        """Whether a checkpoint is wished for."""
        return bool(self._asked[2])

    def saved(self) -> None:
        """That wish has come true."""
        self._asked[2] = 0.0

    def mine(self, stop: Any) -> Tensor:
        """What is asked of this process, on the device."""
        save, stop.save = bool(stop.save), False
        asked = [stop.signal == SIGTERM, stop.signal not in (None, SIGTERM), save]
        return send(asked, self.device)

    def heed(self, sums: Tensor) -> None:
        """Take note of what was asked of any process; from CUDA, of the time before this one."""
        if sums.device.type == "cuda":
            sums = torch.tensor(self._later.swap(sums), dtype=torch.float64)
        self._asked = torch.maximum(self._asked, sums)
