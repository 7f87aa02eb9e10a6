"""Each file of the torture set is told for what it is, by the command, by reads and in shards."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torture

from w2vtool import audio, manifest
from w2vtool.audio import AudioError
from w2vtool.manifest import Candidate

NOT_FOUND_BY_SCANS = (
    "folder.wav",
    "folder-link.ogg",
    "never-there.wav",
    "no-ending",
    "unknown.ending",
)
ONLY_IN_MANIFESTS = ("bad-name", "too-short")  # the audio as such is fine
LONG = "ten-hours.wav"  # takes seconds: left to the command
# The command, and then the most memory that it and its largest worker had, in KiB. From outside,
# what a process had before its exec, a copy of this one, would count as its own.
MEASURED = """
import atexit, pathlib, re, resource, sys
from w2vtool import cli
def tell():
    status = pathlib.Path("/proc/self/status").read_text()
    worker = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    print(re.search(r"VmHWM:\\s*(\\d+)", status)[1], worker, file=sys.stderr)
atexit.register(tell)
cli.main(sys.argv[1:])
"""


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[Path, str]:
    return torture.build(tmp_path_factory.mktemp("torture"))


def found(built: manifest.Built, paths: dict[str, Path]) -> Iterator[tuple[Path, str]]:
    for row in built.rows:
        words = ["ok", *["silent"] * (row.id in built.silent)]
        warned = sorted(name for name, ids in built.warned.items() if row.id in ids)
        yield paths[row.id], " ".join(words + warned)
    for item in built.rejected:
        yield Path(item.path), item.reason


def test_the_set_is_as_large_as_promised() -> None:
    folders = {case.name.partition("/")[0] for case in torture.CASES if "/" in case.name}
    assert {"wav", "flac", "ogg", "opus", "mp3", "aiff"} <= folders
    assert len(torture.CASES) >= 180
    reasons = {case.expected.split()[0] for case in torture.CASES} - {"ok"}
    assert len(reasons) >= 16


def test_every_file_is_put_into_its_class(files: dict[Path, str]) -> None:
    paths = {str(number): path for number, path in enumerate(files) if path.name != LONG}
    items = [Candidate(row_id, path) for row_id, path in paths.items()]
    told = dict(found(manifest.build(items, jobs=2), paths))
    wrong = {
        path.name: (told[path], expected)
        for path, expected in files.items()
        if path.name != LONG and told[path] != expected and told[path] not in expected.split(" or ")
    }
    assert not wrong


def test_the_command_ends_well_and_takes_little_memory(
    files: dict[Path, str], tmp_path: Path
) -> None:
    folder = Path(os.path.commonpath(files))
    out = tmp_path / "all.jsonl"
    words = ["manifest", str(folder), "--out", str(out), "--jobs", "2"]
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, *words],
        env=os.environ | {"PYTHONPATH": str(Path(manifest.__file__).parents[1])},
        capture_output=True,
        text=True,
        errors="replace",
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    *_, own, worker = done.stderr.split()
    assert int(own) + 2 * int(worker) < 500 << 10
    listed = [json.loads(line) for line in Path(f"{out}.rejected.jsonl").read_text().splitlines()]
    rejected = {item["path"]: item["reason"] for item in listed}
    kept = len(out.read_text(encoding="utf-8").splitlines())
    scanned = {path: why for path, why in files.items() if path.name not in NOT_FOUND_BY_SCANS}
    bad = {str(path): why for path, why in scanned.items() if not why.startswith("ok")}
    assert rejected.keys() == bad.keys()
    assert all(rejected[path] in why.split(" or ") for path, why in bad.items())
    assert kept == len(scanned) - len(bad)
    assert f'"id": "{LONG.removesuffix(".wav")}"' in out.read_text(encoding="utf-8")
    assert "files with clipped samples: " in done.stderr


def outcome(path: Path, **more: Any) -> str | np.ndarray:
    try:
        return audio.read(path, **more)
    except AudioError as error:
        return error.reason


def test_headers_and_samples_agree(files: dict[Path, str]) -> None:
    for path, expected in files.items():
        if path.name == LONG:
            continue
        whole = outcome(path)
        if isinstance(whole, str):
            assert whole in expected.split(" or "), path.name
            continue
        assert expected.startswith("ok") or expected in ONLY_IN_MANIFESTS, path.name
        slack = 1_152 if path.suffix == ".mp3" else 0
        assert abs(audio.probe(path).samples - len(whole)) <= slack, path.name


def test_members_of_a_shard_are_judged_as_the_files_they_were(
    files: dict[Path, str], tmp_path: Path
) -> None:
    shard, spans, data = tmp_path / "all.tar", {}, bytearray()
    for path in files:
        if path.is_file() and 0 < path.stat().st_size < 1 << 20:
            spans[path] = (len(data) + 512, path.stat().st_size)
            data += bytes(512) + path.read_bytes() + b"junk"
    shard.write_bytes(data)
    assert len(spans) > 150
    for path, span in spans.items():
        if files[path] == "wrong-extension":  # a member has no name
            continue
        alone, member = outcome(path), outcome(shard, span=span)
        if isinstance(alone, str):
            assert member == alone, path.name
        else:
            np.testing.assert_array_equal(member, alone, err_msg=path.name)
            assert audio.probe(shard, span=span) == audio.probe(path)


def test_the_set_is_made_of_the_same_bytes_every_time(tmp_path: Path) -> None:
    for case in torture.CASES:
        if case.name.startswith(("ogg/c", "aiff/f", "wav/f", "mp3/c", "opus/c")):
            (tmp_path / case.name).parent.mkdir(exist_ok=True)
            case.make(tmp_path / case.name)
            first = (tmp_path / case.name).read_bytes()
            case.make(tmp_path / case.name)
            assert (tmp_path / case.name).read_bytes() == first, case.name
