"""A process that has imported everything and forks a child for each command: a run starts at once.

Starting Python with torch takes seconds; tests that kill a run fifty times cannot wait for it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Self

ROOT = Path(__file__).parents[1]
SCRIPT = """
import atexit, gc, json, os, sys
import numpy.ma, numpy.random, soundfile, torch._dynamo, torch.distributed, torch.utils.data
from w2vtool import api, checkpoint, cli, config, jobs, objectives, registry, trainer, training
torch.set_num_threads(1)
gc.freeze()
print(os.getpid(), flush=True)
for line in sys.stdin:
    order = json.loads(line)
    child = os.fork()
    if child == 0:
        os.setsid()
        for stream, name in enumerate((os.devnull, order["out"], order["err"])):
            os.dup2(os.open(name, os.O_RDWR | os.O_CREAT | os.O_TRUNC), stream)
        try:
            exec(order["before"], {})
            cli.main(order["words"])
        except SystemExit as ended:  # without taking torch apart, which is most of the time
            atexit._run_exitfuncs()
            sys.stdout.flush()
            os._exit(int(ended.code or 0))
    print(child, flush=True)
    sys.stdin.readline()
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


class Zygote:
    """Runs commands one after the other, each in a process of its own."""

    def __init__(self, folder: Path) -> None:
        self.out, self.err = folder / "out.txt", folder / "err.txt"

    def __enter__(self) -> Self:
        env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        for name in ("RANK", "WORLD_SIZE", "W2VTOOL_PLUGINS"):
            env.pop(name, None)
        self.process = subprocess.Popen(
            [sys.executable, "-W", "ignore::DeprecationWarning", "-c", SCRIPT],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=ROOT,
            env=env,
            text=True,
        )
        assert self._answer() == self.process.pid, "it has imported everything"
        return self

    def __exit__(self, *error: Any) -> None:
        self.process.communicate()  # the end of its input is the end of it

    def start(self, *words: object, before: str = "") -> int:
        """Begin ``w2vtool`` with these words, after running ``before`` there; gives the process.

        It may be sent signals until ``end``, even if it has ended by itself.
        """
        order = {
            "words": [str(word) for word in words],
            "before": before,
            "out": str(self.out),
            "err": str(self.err),
        }
        return self._ask(json.dumps(order))

    def end(self) -> int:
        """Wait for what was started; gives its exit code, or minus the signal that ended it."""
        return self._ask("")

    def run(self, *words: object, before: str = "") -> int:
        """Both."""
        self.start(*words, before=before)
        return self.end()

    def _ask(self, line: str) -> int:
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        return self._answer()

    def _answer(self) -> int:
        assert self.process.stdout is not None
        return int(self.process.stdout.readline())
