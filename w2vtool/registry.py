"""Which tasks there are, found without importing any of them.

The built-in table, entry points of installed packages and ``plugins/*.py`` go in; ``TaskRef``
values go out: where a task is and what it says about itself. ``load`` imports it. So a slow or
broken plug-in costs nothing until somebody runs it, and never breaks ``w2vtool --help``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from w2vtool import extensions
from w2vtool.errors import ConfigError, PluginError
from w2vtool.task import API, Task

if TYPE_CHECKING:
    import typer

GROUP = "w2vtool.tasks"
BUILT_IN_ORIGIN = extensions.BUILT_IN_ORIGIN
BUILT_IN = {
    "manifest": ("w2vtool.tasks.manifest:TASK", "Build a manifest from folders of audio."),
    "manifest check": (
        "w2vtool.tasks.manifest_check:TASK",
        "Compare a manifest with its audio files.",
    ),
    "manifest stats": ("w2vtool.tasks.manifest_stats:TASK", "Show what is in manifests."),
    "manifest split": (
        "w2vtool.tasks.manifest_split:TASK",
        "Cut a manifest by speaker.",
    ),
    "manifest filter": ("w2vtool.tasks.manifest_filter:TASK", "Keep rows that meet conditions."),
    "manifest convert": (
        "w2vtool.tasks.manifest_convert:TASK",
        "Convert from and to fairseq, NeMo, Kaldi, Lhotse, tables, audiofolder.",
    ),
    "download": (
        "w2vtool.tasks.download:TASK",
        "Fetch, check and unpack a corpus.",
    ),
    "shard": ("w2vtool.tasks.shard:TASK", "Pack the audio of a manifest into tar shards."),
    "pretrain": ("w2vtool.tasks.pretrain:TASK", "Pre-train wav2vec 2.0 on unlabelled audio."),
    "finetune-ctc": ("w2vtool.tasks.finetune_ctc:TASK", "Fine-tune with CTC on transcripts."),
    "lm train": ("w2vtool.tasks.lm_train:TASK", "Estimate an n-gram language model from text."),
    "lm info": ("w2vtool.tasks.lm_info:TASK", "Say what a language model is."),
    "lm perplexity": ("w2vtool.tasks.lm_perplexity:TASK", "How well a model predicts a text."),
    "lm prune": ("w2vtool.tasks.lm_prune:TASK", "Make a language model smaller."),
    "tokens train": ("w2vtool.tasks.tokens_train:TASK", "Make letters or SentencePiece pieces."),
    "decode": ("w2vtool.tasks.decode:TASK", "Transcribe audio, with a language model if given."),
    "tune-decode": ("w2vtool.tasks.tune_decode:TASK", "Search for the weights of decode."),
    "score": ("w2vtool.tasks.score:TASK", "Score and compare transcripts, with intervals."),
    "extract": ("w2vtool.tasks.extract:TASK", "Write the features of chosen layers."),
    "import": ("w2vtool.tasks.import_model:TASK", "Take over a fairseq, HF or torchaudio model."),
    "export": ("w2vtool.tasks.export_model:TASK", "Write a model for fairseq, HF or torchaudio."),
    "bench pretrain": ("w2vtool.tasks.bench:PRETRAIN", "Time pre-training on this machine."),
    "bench finetune": ("w2vtool.tasks.bench:FINETUNE", "Time CTC training on this machine."),
    "bench extract": ("w2vtool.tasks.bench:EXTRACT", "Time feature extraction on this machine."),
    "bench data": ("w2vtool.tasks.bench:DATA", "Time reading and masking audio on this machine."),
    "run": ("w2vtool.tasks.run:TASK", "Run the pipeline of a recipe, skipping what is done."),
}
# tasks that are groups, too: the name alone, before anything but an action, stands for this action
SHORT_FORMS = {"manifest": "build"}
GROUPS = {
    "lm": "N-gram language models",
    "tokens": "Vocabularies",
    "bench": "How fast this machine is",
}
COMMANDS = {
    "tasks": "List the tasks, built in and plugged in.",
    "recipes": "List the recipes in ./recipes.",
    "check": "Check a recipe without running it.",
    "info": "Describe a checkpoint or a run folder.",
}
EXAMPLES = {
    "tasks": "w2vtool tasks --check speaking-rate",
    "recipes": "w2vtool recipes --schema",
    "check": "w2vtool check recipes/librispeech.yaml",
    "info": "w2vtool info runs/demo/finetune-ctc",
}
# keys of a recipe with a meaning of their own; a task of that name could have no section
_RECIPE_WORDS = (
    "extends",
    "variants",
    "name",
    "about",
    "pipeline",
    "data",
    "model",
    "text",
)
_NAME = re.compile(r"[a-z0-9][a-z0-9_-]*( [a-z0-9][a-z0-9_-]*)*")


@dataclass(frozen=True)
class TaskRef:
    """A task that has not been imported.

    ``target`` is ``package.module:ATTR`` or a file; ``origin`` is ``built-in``, a distribution with
    its version, or the file. ``shadows`` are the origins that lost the name to this one; a
    ``problem`` says why it can never run.
    """

    name: str
    target: str
    summary: str
    origin: str
    shadows: tuple[str, ...] = ()
    problem: str = ""

    def load(self) -> Task[Any] | typer.Typer:
        """Import the task and check it. Raises PluginError, whatever the plug-in itself raised."""
        if self.problem:
            what = f"task {self.name!r} cannot be run: {self.problem}"
            raise PluginError(what, where=self.origin, hint="rename it")
        try:
            task = extensions.load(self.target, "TASK")
        except (Exception, SystemExit) as exc:  # a plug-in may fail in any way
            hint = f"w2vtool tasks --check {self.name} shows the traceback"
            what = f"task {self.name!r} cannot be loaded: {extensions.cause(exc)}"
            raise PluginError(what, where=self.origin, hint=hint) from exc
        return self._checked(task)

    def _checked(self, task: Any) -> Task[Any] | typer.Typer:
        import typer

        if isinstance(task, typer.Typer):
            return task
        if not isinstance(task, Task):
            what = f"TASK is not a Task or a typer.Typer but a value of {type(task).__name__}"
            raise PluginError(what, where=self.origin)
        if task.api != API:
            raise PluginError(
                f"task {self.name!r} is for plug-in API {task.api}, this w2vtool has API {API}",
                where=self.origin,
                hint="update w2vtool" if task.api > API else "update the plug-in",
            )
        return task


def discover(folder: Path | None = None) -> dict[str, TaskRef]:
    """All tasks by name; built-in ones win over installed ones, those over local files.

    ``folder`` holds the local ones; it is ``$W2VTOOL_PLUGINS`` (empty: none), else ``plugins``.
    """
    found: dict[str, TaskRef] = {}
    for ref in _all(folder):
        if ref.name in found:
            first = found[ref.name]
            found[ref.name] = replace(first, shadows=(*first.shadows, ref.origin))
            continue
        found[ref.name] = replace(ref, problem=_problem(ref.name, found))
    return found


def find(name: str) -> TaskRef:
    """The task of that name. Raises ConfigError, with a suggestion, if there is none."""
    found = discover()
    if name not in found:
        from w2vtool.nodes import did_you_mean

        raise ConfigError(f"no task {name!r}", hint=did_you_mean(name, found))
    return found[name]


def _all(folder: Path | None) -> Iterator[TaskRef]:
    for name, (target, summary) in BUILT_IN.items():
        yield TaskRef(name, target, summary, BUILT_IN_ORIGIN)
    for point in extensions.installed(GROUP):
        yield TaskRef(*point)
    if (local := extensions.plugin_folder(folder)) is not None:
        for point in extensions.local(local):
            yield TaskRef(*point)


def _problem(name: str, found: dict[str, TaskRef]) -> str:
    """Why a name cannot be a command, or nothing."""
    if not _NAME.fullmatch(name):
        return "a task name is made of lower-case words, digits and '-'"
    first = name.partition(" ")[0]
    if first in COMMANDS or first in _RECIPE_WORDS:
        return f"{first!r} means something else in w2vtool"
    if name not in BUILT_IN and any(
        other.startswith(f"{name} ") or name.startswith(f"{other} ") for other in found
    ):
        return f"{first!r} is both a task and a group of tasks"
    return ""
