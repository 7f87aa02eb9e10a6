"""Run a recipe's pipeline: its tasks in order, each in its own folder, skipping what is done.

A step is skipped when it ended well, was asked the same, and read the same files; so the same
command resumes a chain that was stopped, and costs nothing when all is done. Goes in: a recipe with
a ``pipeline:``. Goes out: the folders of its steps, and a table of what was reached.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from w2vtool.errors import ConfigError, Stopped
from w2vtool.schema import Config, knob
from w2vtool.task import Task

if TYPE_CHECKING:
    from w2vtool.jobs import Job
    from w2vtool.run import Run

OUTPUTS = ("out", "words", "manifests")  # keys that name what a step writes
STATE = "pipeline.json"


class RunConfig(Config):
    """Which part of the pipeline."""

    start: str | None = knob(None, "First step to run; those before it are taken as they are.")
    until: str | None = knob(None, "Last step to run.")
    force: bool = knob(False, "Run steps again that are done and unchanged.")


def run_pipeline(config: RunConfig, run: Run) -> dict[str, Any]:
    """Run what is not done, then print where everything lies."""
    from w2vtool import jobs

    if run.recipe is None:
        raise ConfigError("no recipe given", hint="w2vtool run recipes/demo.yaml")
    chain = jobs.pipeline(run.recipe, run.words, work=run.work)
    chosen = _chosen(config, chain)
    state_path = run.work / STATE
    state = _read(state_path)
    rows, summaries, began = [], {}, time.monotonic()
    for number, job in enumerate(chain, start=1):
        if job.step not in chosen:
            continue
        before = state.get(job.step, {})
        reason = "forced" if config.force else why(job, before)
        if not reason:
            run.say(f"[{number}/{len(chain)}] {job.step}: done and unchanged, skipped")
            summaries[job.step] = before["summary"]
            rows.append((job.step, "unchanged", "", place(job)))
            continue
        run.say(f"[{number}/{len(chain)}] {job.step}: {reason}")
        clock = time.monotonic()
        read = inputs(job)
        asked = {"config": job.digest, "inputs": read}
        resume = before.get("started") == asked and unfinished(job)
        state[job.step] = {"started": asked}
        _write(state_path, state)
        summary = jobs.execute(job, resume=resume, parent=run)
        seconds = time.monotonic() - clock
        summaries[job.step] = summary
        # a step that built a manifest itself has read it: no reason to run again
        read = {**inputs(job), **read}
        state[job.step] = {"config": job.digest, "inputs": read, "summary": summary}
        _write(state_path, state)
        rows.append((job.step, "done", f"{seconds:.0f} s", place(job)))
        if run.stop.signal is not None:
            raise Stopped(run.stop.signal)
    _print(run, rows, summaries)
    return {"seconds": round(time.monotonic() - began, 1), "steps": summaries}


def _chosen(config: RunConfig, chain: list[Job]) -> set[str]:
    """The steps between ``start`` and ``until``. Raises ConfigError for an unknown one."""
    names = [job.step for job in chain]
    for name in (config.start, config.until):
        if name is not None and name not in names:
            raise ConfigError(f"no step {name!r}", hint=f"the steps are {', '.join(names)}")
    first = names.index(config.start) if config.start else 0
    last = names.index(config.until) if config.until else len(names) - 1
    return set(names[first : last + 1])


def why(job: Job, before: Mapping[str, Any]) -> str:
    """Why a step has to run, or nothing."""
    if "summary" not in before:
        return "was not finished" if before else "not run yet"
    if before["config"] != job.digest:
        return "its settings have changed"
    changed = [name for name, mark in inputs(job).items() if before["inputs"].get(name) != mark]
    if changed:
        return f"{changed[0]} has changed"
    missing = [path for path in outputs(job, before) if not path.exists()]
    return f"{missing[0]} is not there" if missing else ""


def unfinished(job: Job) -> bool:
    """Whether the step's folder holds a run that did not end well."""
    from w2vtool.run import record

    return (record(job.folder) or {}).get("status") in ("running", "interrupted", "failed")


def inputs(job: Job) -> dict[str, str]:
    """Files and run folders that a step reads, each with what tells its content."""
    from w2vtool.run import file_sha256, record
    from w2vtool.splits import SPLITS, locate

    marks = {}
    for key, path in _paths(job.config.model_dump()):
        if key in OUTPUTS:
            continue
        if path.is_file():
            marks[str(path)] = file_sha256(path)
        elif found := record(path):
            marks[str(path)] = f"{found.get('config_sha256')} {found.get('ended')}"
    data: Any = getattr(job.config, "data", None)
    for split in SPLITS if data is not None else ():
        for part in getattr(data, split):
            if (source := locate(data, part)).is_file():
                marks[str(source)] = file_sha256(source)
    for path in _manifests(job) if job.ref.name != "manifest" else ():
        if path.is_file():
            marks[str(path)] = file_sha256(path)
    return marks


def _manifests(job: Job) -> list[Path]:
    """The manifests of the recipe's splits that are built from parts of a corpus."""
    from w2vtool.splits import SPLITS, path_of

    data: Any = getattr(job.config, "data", None)
    parts = {} if data is None else {name: getattr(data, name) for name in SPLITS}
    built = [name for name, given in parts.items() if given and not given[0].endswith(".jsonl")]
    return [path_of(data, name) for name in built]


def outputs(job: Job, before: Mapping[str, Any]) -> Iterator[Path]:
    """What must be there for a step to count as done."""
    for key, path in _paths(job.config.model_dump()):
        if key in OUTPUTS and key != "manifests":
            yield path
    if job.ref.name == "manifest":
        yield from _manifests(job)
    if "run" in before["summary"]:  # it made a folder
        yield Path(before["summary"]["run"]) / "run.json"


def _paths(value: Any, key: str = "") -> Iterator[tuple[str, Path]]:
    """All paths of a config with the key they stand under."""
    if isinstance(value, Path):
        yield key, value
    elif isinstance(value, Mapping):
        for name, inner in value.items():
            yield from _paths(inner, name)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _paths(inner, key)


def place(job: Job) -> str:
    """Where a step's results lie, as a person would write it."""
    path = next((path for key, path in _paths(job.config.model_dump()) if key == "out"), job.folder)
    if not path.exists():
        path = getattr(getattr(job.config, "data", None), "manifests", path)
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def _print(run: Run, rows: list[tuple[str, str, str, str]], summaries: Mapping[str, Any]) -> None:
    run.table("steps", ("step", "", "time", "where"), rows)
    scored = [
        (
            step,
            f"{100 * found['wer']:.2f} %",
            _of(found["word_errors"]),
            f"{100 * found['cer']:.2f} %",
            _of(found["letter_errors"]),
            found["hyp"],
        )
        for step, found in summaries.items()
        if "wer" in found
    ]
    if scored:
        columns = ("", "WER", "errors / words", "CER", "errors / letters", "transcripts")
        run.table("results", columns, [(*row[:-1], _short(row[-1])) for row in scored])


def _of(errors: Mapping[str, int]) -> str:
    wrong = errors["substitutions"] + errors["deletions"] + errors["insertions"]
    return f"{wrong} / {errors['reference']}"


def _short(path: str) -> str:
    found = Path(path)
    return str(found.relative_to(Path.cwd())) if found.is_relative_to(Path.cwd()) else path


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _write(path: Path, state: Mapping[str, Any]) -> None:
    from w2vtool.run import write_atomic

    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, json.dumps(state, indent=1) + "\n")


TASK = Task(
    RunConfig,
    run_pipeline,
    flags={"--from": "start", "--until": "until", "--force": "force"},
    example="w2vtool run recipes/demo.yaml",
    whole_recipe=True,
)
