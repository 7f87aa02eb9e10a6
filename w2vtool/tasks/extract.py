"""Write layers of the network as features: a file per utterance, and an index.

Goes in: any checkpoint, and audio files, folders or manifests. Goes out: ID.safetensors with all
layers, or ID.LAYER.npy for each, and index.jsonl that says for every utterance where its features
are, and their shapes. Parts that are done already, of the same audio with the same checkpoint, are
not done again: OUT/parts has a file for each.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from w2vtool.errors import ConfigError, DataError
from w2vtool.schema import Config, knob
from w2vtool.task import Task

if TYPE_CHECKING:
    import numpy as np

    from w2vtool.emissions import Job, Jobs
    from w2vtool.manifest import Utterance
    from w2vtool.parts import Compute
    from w2vtool.run import Run


class ExtractConfig(Config):
    """Which layers of which audio, and where they go."""

    inputs: tuple[Path, ...] = knob(doc="Audio files, folders or manifests.")
    checkpoint: Path = knob(doc="Checkpoint, or the run folder that holds it.")
    out: Path = knob(doc="Folder for the features.")
    layers: str = knob(
        "final",
        "Layers, with commas: conv (latents), 0 (input of the first block), 1… (output of a block, "
        "without the last norm of pre-LN models), final (output of the network).",
        source="docs/features.md",
    )
    format: Literal["safetensors", "npy"] = knob("safetensors", "Files to write.")
    device: str = knob("auto", "auto, cpu or cuda.")
    precision: Literal["auto", "float32", "bf16"] = knob(
        "float32",
        "Arithmetic of the network; auto is bf16 where the device computes in it. Features are "
        "written as float32 in any case.",
    )
    batch_seconds: float = knob(60.0, "Audio in one batch.", unit="s", gt=0)
    jobs: int = knob(1, "Processes that compute; they share the CPU's cores, or the GPUs.", ge=1)
    engine: Literal["local", "ray"] = knob(
        "local", "Where the processes run: on this machine, or on the cluster of RAY_ADDRESS."
    )
    strict_rate: bool = knob(False, "Refuse audio that is not 16 kHz, in place of resampling it.")
    strict: bool = knob(
        False, "Stop at the first row that cannot be used; else it is rejected, and the rest done."
    )


@dataclass(frozen=True)
class Extracting:
    """What is done to each part: the network is run, files are written, index lines come out."""

    config: ExtractConfig
    names: tuple[str, ...]
    precision: Literal["float32", "bf16"]

    def start(self, device: str) -> Compute:
        """Load the network once."""
        from w2vtool import checkpoint, emissions, rejects
        from w2vtool.device import choose

        loaded = checkpoint.load(self.config.checkpoint)
        model, names = loaded.model().wav2vec2, list(self.names)

        def compute(rows: Sequence[Job]) -> Iterator[dict[str, Any]]:
            rejected: list[dict[str, Any]] = []
            stream = emissions.layers(
                rows,
                model,
                names,
                device=choose(device),
                batch_seconds=self.config.batch_seconds,
                precision=self.precision,
                reject=None if self.config.strict else rejects.into(rejected, rows),
            )
            for row, arrays in stream:
                files = files_of(self.config, row.id, names)
                write_features(files, arrays, str(self.config.checkpoint))
                shapes = {name: list(array.shape) for name, array in arrays.items()}
                yield index_line(self.config, row, names, shapes)
            yield from rejected

        return compute


def extract(config: ExtractConfig, run: Run) -> dict[str, Any]:
    """Run the network over what is not there yet, write features, then the index."""
    from w2vtool import checkpoint, emissions
    from w2vtool.device import choose, inference_precision
    from w2vtool.lock import Lock

    loaded = checkpoint.load(config.checkpoint)
    names = layer_names(config.layers, loaded.spec.architecture.layers)
    rows = emissions.open_inputs(
        config.inputs,
        jobs=max(2, config.jobs),
        strict_rate=config.strict_rate,
        strict=config.strict,
        say=run.say,
    )
    check_ids(rows)
    precision = inference_precision(config.precision, choose(config.device))
    source = {
        "checkpoint_sha256": checkpoint.fingerprint(loaded.path),
        "precision": precision,
    }
    if run.rank:
        return _fill(config, run, rows, names, source)
    claim(config, names, source)
    lock = Lock(config.out, run.say)  # half a file of a living process is none to be deleted
    try:
        return _fill(config, run, rows, names, source)
    finally:
        lock.close()


def _fill(
    config: ExtractConfig, run: Run, rows: Jobs, names: list[str], source: dict[str, Any]
) -> dict[str, Any]:
    """Extract into the folder that was claimed."""
    from w2vtool import emissions, engines, parts, rejects
    from w2vtool.manifest import write_lines

    if run.rank == 0:
        engines.sweep(config.out)
    what = {"layers": names, "format": config.format, "batch": config.batch_seconds, **source}
    cut = parts.cut(rows, what, emissions.identify)
    folder = config.out / "parts"
    for part in cut[run.rank :: run.world]:
        ids = [line["id"] for line in rejects.apart(parts.read(folder, part) or [])[0]]
        if not all(read_shapes(files_of(config, name, names)) for name in ids):
            part.path(folder).unlink(missing_ok=True)  # features have gone, or were cut short
    there = sum(parts.done(folder, part) for part in cut)
    if there:
        run.say(f"{there} of {len(rows)} utterances are there already")
    rejects.foresee(cut, folder, strict=config.strict, device=config.device, run=run)
    rejected: list[dict[str, Any]] = []

    def lines() -> Iterator[str]:
        for found in chain([first], stream):
            good, bad = rejects.apart(found)
            rejected.extend(bad)
            yield from (json.dumps(line, ensure_ascii=False) for line in good)

    with run.progress(len(rows), "extracting", "utterances") as bar:
        stream = engines.run(
            Extracting(config, tuple(names), source["precision"]),
            cut,
            folder,
            engine=config.engine,
            jobs=config.jobs,
            device=config.device,
            on_progress=bar.update,
            stop=run.stop,
        )
        first = next(stream, [])  # when all parts are done
    index = config.out / "index.jsonl"
    if run.rank == 0:
        write_lines(index, lines())
    count = len(rows) - len(rejected)
    run.result(f"{count} utterances, layers {', '.join(names)}: {index}")
    summary = {
        "index": str(index),
        "utterances": count,
        "extracted": count - there,
        "audio_s": round(rows.seconds, 2),
    }
    return rejects.conclude(config.out, [*rows.rejected, *rejected], summary, run)


def layer_names(text: str, blocks: int) -> list[str]:
    """The layers that ``--layers`` names. Raises ConfigError for one that the model has not."""
    names = [name.strip() for name in text.split(",") if name.strip()]
    known = ["conv", *map(str, range(blocks + 1)), "final"]
    unknown = [name for name in names if name not in known]
    if unknown or not names:
        raise ConfigError(
            f"no layer {', '.join(unknown) or 'given'}",
            where="extract.layers",
            hint=f"this model has conv, 0…{blocks} and final",
        )
    return list(dict.fromkeys(names))


def claim(config: ExtractConfig, names: list[str], source: dict[str, str]) -> None:
    """Note in the folder what it holds. Raises ConfigError when it holds something else."""
    from w2vtool.run import make_folder, write_atomic

    wanted = {"layers": names, "format": config.format, "hop_seconds": 0.02, **source}
    path = config.out / "features.json"
    make_folder(config.out, "--out")
    if not path.exists():
        write_atomic(path, json.dumps(wanted, indent=1) + "\n")
        return
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as exc:
        hint = "choose another --out"
        raise DataError(f"cannot be read: {exc}", where=str(path), hint=hint) from exc
    if found != wanted:
        differ = ", ".join(key for key in wanted if found.get(key) != wanted[key])
        raise ConfigError(
            f"this folder holds other features (they differ in {differ})",
            where=str(config.out),
            hint="choose another --out",
        )


def check_ids(rows: Jobs) -> None:
    """Raise DataError for ids that stand twice, or would leave the folder as file names."""
    from w2vtool.scan import Ids

    ids = Ids()
    for _, row in rows:
        ids.add(row.id)
        if row.id.startswith("/") or ".." in row.id.split("/"):
            raise DataError(f"id {row.id!r} cannot be a file name", where="inputs")
    if maybe := ids.twice():
        counts = Counter(row.id for _, row in rows if hash(row.id) in maybe)
        if twice := [name for name, count in counts.items() if count > 1]:
            raise DataError(f"{len(twice)} ids stand twice, first {twice[0]!r}", where="inputs")


def files_of(config: ExtractConfig, row_id: str, names: list[str]) -> dict[str, Path]:
    """The file of each layer of an utterance; safetensors have them all in one."""
    if config.format == "npy":
        return {name: config.out / f"{row_id}.{name}.npy" for name in names}
    return dict.fromkeys(names, config.out / f"{row_id}.safetensors")


def read_shapes(files: dict[str, Path]) -> dict[str, list[int]]:
    """Shapes of the layers that are there; nothing if one is missing or damaged."""
    import numpy as np
    from safetensors import SafetensorError, safe_open

    shapes = {}
    try:
        for name, path in files.items():
            if path.suffix == ".npy":
                shapes[name] = list(np.load(path, mmap_mode="r").shape)
                continue
            with safe_open(path, "np") as file:
                shapes[name] = list(file.get_slice(name).get_shape())
    except (OSError, ValueError, EOFError, SafetensorError):
        return {}
    return shapes


def write_features(files: dict[str, Path], arrays: dict[str, np.ndarray], source: str) -> None:
    """One utterance's layers, each file complete or not there at all."""
    from io import BytesIO

    import numpy as np
    from safetensors.numpy import save

    from w2vtool.run import write_atomic

    for name, path in files.items():
        if path.suffix == ".npy":
            buffer = BytesIO()
            np.save(buffer, arrays[name])
            write_atomic(path, buffer.getvalue())
        else:  # the same file for all layers
            # safetensors writes the memory of an array as it lies, transposed or not
            whole = {key: np.ascontiguousarray(array) for key, array in arrays.items()}
            # one entry only: with more, their order is another one every time
            write_atomic(path, save(whole, {"checkpoint": source}))
            return


def index_line(
    config: ExtractConfig, row: Utterance, names: list[str], shapes: dict[str, list[int]]
) -> dict[str, Any]:
    """A line of ``index.jsonl``, with ``file`` (safetensors) or ``files`` by layer (npy).

    Paths are relative to the index, shapes are frames by width.
    """
    paths = files_of(config, row.id, names)
    files = {name: path.relative_to(config.out).as_posix() for name, path in paths.items()}
    where = {"files": files} if config.format == "npy" else {"file": files[names[0]]}
    return {
        "id": row.id,
        **where,
        "shapes": {name: shapes[name] for name in names},
        "duration": row.duration,
        "text": row.text,
        "speaker": row.speaker,
    }


TASK = Task(
    ExtractConfig,
    extract,
    flags={
        "--checkpoint": "checkpoint",
        "--layers": "layers",
        "--out": "out",
        "--format": "format",
        "--device": "device",
        "--precision": "precision",
        "--jobs": "jobs",
        "--engine": "engine",
        "--strict-rate": "strict_rate",
        "--strict": "strict",
    },
    inputs="inputs",
    example="w2vtool extract --checkpoint runs/demo/pretrain --layers conv,2,final "
    "--out features recipes/data/demo/test.tsv",
)
