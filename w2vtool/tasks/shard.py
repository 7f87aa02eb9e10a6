"""Pack the audio of a manifest into tar shards that are read where they lie.

Goes in: a manifest, or with ``--index`` tar files in WebDataset's layout. Goes out: shards in a
folder with a manifest of the same rows that points into them, or that manifest alone.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from w2vtool.errors import ConfigError, Stopped
from w2vtool.schema import Config, knob
from w2vtool.task import Task

if TYPE_CHECKING:
    from collections.abc import Iterator

    from w2vtool.manifest import Utterance
    from w2vtool.run import Run

UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


class ShardConfig(Config):
    """What is packed, how, and where to."""

    inputs: tuple[Path, ...] = knob((), "A manifest (.jsonl); tar files, for index.")
    out: Path = knob(doc="Folder of the shards and their manifest; for index, the manifest.")
    size: str = knob("512MB", "About how large a shard is: a number of MB, GB, MiB or GiB.")
    encode: Literal["as-is", "flac"] = knob(
        "as-is",
        "Audio as it is, or as 16-bit FLAC at 16 kHz where training then reads the same samples.",
    )
    rounded: bool = knob(
        False, "FLAC everywhere: where the samples have more than 16 bits, they are rounded."
    )
    jobs: int = knob(1, "Processes that pack.", ge=1)
    index: bool = knob(False, "Pack nothing: write the manifest of tar files that are there.")


def shard(config: ShardConfig, run: Run) -> dict[str, Any]:
    """Pack, or index; print and return what was done."""
    if config.index:
        return _index(config, run)
    from w2vtool import manifest, packing
    from w2vtool.shard_writer import Packing

    if config.rounded and config.encode != "flac":
        raise ConfigError("rounded is for encode=flac", hint="--encode flac --rounded")
    if len(config.inputs) != 1:
        raise ConfigError(f"{len(config.inputs)} inputs; one manifest is packed at a time")
    size, source = _bytes(config.size), manifest.read(config.inputs[0])
    with run.progress(len(source.rows), "packing", "utterances") as bar:

        def on_progress(done: int) -> None:
            if run.stop.signal is not None:
                raise Stopped(run.stop.signal)
            bar.update(done)

        found = packing.pack_all(
            source,
            config.out,
            size=size,
            packing=Packing(config.encode == "flac", config.rounded),
            jobs=config.jobs,
            on_progress=on_progress,
        )
    packed = manifest.read(config.out / "manifest.jsonl")
    summary = {
        "manifest": str(packed.path),
        "sha256": packed.sha256,
        "same_hash": packed.sha256 == source.sha256,
        "utterances": len(packed.rows),
        **vars(found),
    }
    run.note(manifest=str(packed.path), manifest_sha256=packed.sha256)
    rows = {
        "shards": f"{found.shards:,}, {_size(found.bytes)} in all",
        "utterances": f"{len(packed.rows):,}",
        "encoded as FLAC here": f"{found.encoded:,}",
        "rounded to 16 bits": f"{found.rounded:,}",
        "hash": "that of the manifest packed" if summary["same_hash"] else "another",
    }
    run.table(f"wrote {packed.path}", ("", ""), list(rows.items()))
    if found.changed:
        run.say(f"{found.changed:,} rows have another offset, length or rate: see docs/shards.md")
    return summary


def _index(config: ShardConfig, run: Run) -> dict[str, Any]:
    import os
    from dataclasses import replace

    from w2vtool import kinds, manifest, shards

    if not config.inputs:
        raise ConfigError("no tar files given")
    if problem := kinds.no_manifest(config.out):
        raise ConfigError(problem, where=str(config.out), hint="--index writes one manifest")
    count, folder = 0, config.out.absolute().parent

    def rows() -> Iterator[Utterance]:
        nonlocal count
        with run.progress(len(config.inputs), "reading", "shards") as bar:
            for number, path in enumerate(config.inputs, start=1):
                audio = os.path.relpath(path.absolute(), folder)
                for row in shards.index(path):
                    if run.stop.signal is not None:
                        raise Stopped(run.stop.signal)
                    count += 1
                    yield replace(row, audio=audio)
                bar.update(number)

    manifest.write(config.out, rows())
    run.say(f"wrote {config.out}: {count:,} utterances in {len(config.inputs):,} shards")
    return {"manifest": str(config.out), "utterances": count, "shards": len(config.inputs)}


def _bytes(size: str) -> int:
    """``512MB`` in bytes."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?) ?([A-Za-z]*)", size.strip())
    if not found or found[2].upper() not in UNITS or not float(found[1]):
        raise ConfigError(f"size is {size!r}", hint="such as 512MB, 1GB or 256MiB")
    return int(float(found[1]) * UNITS[found[2].upper()])


def _size(count: int) -> str:
    """Bytes for people: ``0.3 MB``, ``512 MB``, ``51.2 GB``."""
    return f"{count / 1e9:,.1f} GB" if count >= 1e9 else f"{count / 1e6:.3g} MB"


TASK = Task(
    ShardConfig,
    shard,
    flags={
        "--out": "out",
        "--size": "size",
        "--encode": "encode",
        "--rounded": "rounded",
        "--jobs": "jobs",
        "--index": "index",
    },
    inputs="inputs",
    example="w2vtool shard train.jsonl --out shards --size 512MB --encode flac --jobs 4",
)
