"""Write layers of the network as features: one file an utterance, and an index.

Goes in: any checkpoint, and audio files, folders or manifests. Goes out: safetensors or npy files,
and ``index.jsonl`` that says for every utterance where its features are, and their shapes. Files
that are there already, from the same checkpoint, are not made again.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from w2vtool.errors import ConfigError, DataError, Stopped
from w2vtool.schema import Config, knob
from w2vtool.task import Task

if TYPE_CHECKING:
    import numpy as np

    from w2vtool.manifest import Utterance
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
        source="facts §9.3",
    )
    format: Literal["safetensors", "npy"] = knob("safetensors", "Files to write.")
    device: str = knob("auto", "auto, cpu or cuda.")
    batch_seconds: float = knob(60.0, "Audio in one batch.", unit="s", gt=0)
    jobs: int = knob(2, "Processes that check audio files and folders.", ge=1)


def extract(config: ExtractConfig, run: Run) -> dict[str, Any]:
    """Run the network over what is not there yet, write features, then the index."""
    from w2vtool import checkpoint, emissions
    from w2vtool.device import choose
    from w2vtool.run import write_atomic

    loaded = checkpoint.load(config.checkpoint)
    names = layer_names(config.layers, loaded.spec.architecture.layers)
    rows = emissions.open_inputs(config.inputs, jobs=config.jobs, say=run.say)
    claim(config, names, {"checkpoint_sha256": checkpoint.fingerprint(loaded.path)})
    files = {row.id: target(config, row) for _, row in rows}
    if len(files) < len(rows):
        raise DataError("two utterances have the same id", where="inputs")
    left = [(source, row) for source, row in rows if not files[row.id].exists()]
    done = len(rows) - len(left)
    if done:
        run.say(f"{done} of {len(rows)} utterances are there already")
    model = loaded.model().wav2vec2
    with run.progress(len(rows), "extracting", "utterances") as bar:
        stream = emissions.layers(
            left, model, names, device=choose(config.device), batch_seconds=config.batch_seconds
        )
        for row, arrays in stream:
            write_features(files[row.id], arrays, config.format, str(loaded.path))
            done += 1
            bar.update(done)
            if run.stop.signal is not None:
                raise Stopped(run.stop.signal)
    index = [index_line(row, files[row.id], config.out, names) for _, row in rows]
    write_atomic(config.out / "index.jsonl", "".join(json.dumps(x) + "\n" for x in index))
    seconds = round(sum(row.duration for _, row in rows), 2)
    run.result(f"{len(rows)} utterances, layers {', '.join(names)}: {config.out / 'index.jsonl'}")
    return {"index": str(config.out / "index.jsonl"), "utterances": len(rows), "audio_s": seconds}


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
    from w2vtool.run import write_atomic

    wanted = {"layers": names, "format": config.format, **source}
    path = config.out / "features.json"
    config.out.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        write_atomic(path, json.dumps(wanted, indent=1) + "\n")
        return
    found = json.loads(path.read_text(encoding="utf-8"))
    if found != wanted:
        differ = ", ".join(key for key in wanted if found.get(key) != wanted[key])
        raise ConfigError(
            f"this folder holds other features (they differ in {differ})",
            where=str(config.out),
            hint="choose another --out",
        )


def target(config: ExtractConfig, row: Utterance) -> Path:
    """The file of an utterance. Raises DataError for an id that would leave the folder."""
    parts = Path(row.id).parts
    if Path(row.id).is_absolute() or ".." in parts:
        raise DataError(f"id {row.id!r} cannot be a file name", where="inputs")
    suffix = ".safetensors" if config.format == "safetensors" else ".npz"
    return config.out / f"{row.id}{suffix}"


def write_features(
    path: Path, arrays: dict[str, np.ndarray], kind: Literal["safetensors", "npy"], source: str
) -> None:
    """One utterance's layers, complete or not at all."""
    from io import BytesIO

    import numpy as np
    from safetensors.numpy import save

    from w2vtool.run import write_atomic

    path.parent.mkdir(parents=True, exist_ok=True)
    if kind == "safetensors":
        write_atomic(path, save(arrays, {"checkpoint": source, "hop_seconds": "0.02"}))
        return
    buffer = BytesIO()
    np.savez(buffer, **arrays)  # type: ignore[arg-type]
    write_atomic(path, buffer.getvalue())


def index_line(row: Utterance, path: Path, out: Path, names: list[str]) -> dict[str, Any]:
    """A line of ``index.jsonl``."""
    return {
        "id": row.id,
        "file": path.relative_to(out).as_posix(),
        "layers": names,
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
    },
    inputs="inputs",
    example="w2vtool extract --checkpoint runs/demo/pretrain --layers conv,2,final "
    "--out features recipes/data/demo/test.tsv",
)
