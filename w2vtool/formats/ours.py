"""w2vtool's own manifest as one of the formats: everything is kept.

Goes in and out: a ``.jsonl`` file, as ``w2vtool.manifest`` reads and writes it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from w2vtool import kinds, manifest
from w2vtool.audio import Info
from w2vtool.errors import ConfigError
from w2vtool.formats.rows import OURS, Carrier, Options, Rows, refuse_old, relative, with_rate
from w2vtool.manifest import Utterance

HOLDS = frozenset((*OURS, "extra", "empty text"))


def read(path: Path, options: Options) -> Iterator[Utterance]:
    """Rows of a manifest."""
    root = (options.root or path.parent).absolute()
    found: dict[str, Info | None] = {}
    for row in manifest.read(path).rows:
        yield with_rate(replace(row, audio=str(root / row.audio)), found)


def write(path: Path, rows: Rows, options: Options, *, force: bool = False) -> Carrier:
    """Write a manifest."""
    if problem := kinds.no_manifest(path):
        raise ConfigError(problem, where=str(path))
    carrier = Carrier("manifest", path, HOLDS)
    folder = path.absolute().parent
    refuse_old(folder, [path.name], force=force)

    def written() -> Iterator[Utterance]:
        for row in rows:
            carrier.check(row)
            yield replace(row, audio=relative(row.audio, folder))
        carrier.finish()

    manifest.write(path, written())
    return carrier
