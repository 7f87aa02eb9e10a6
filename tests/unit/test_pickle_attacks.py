"""A corpus of malicious checkpoints: each one is refused, and an audit hook sees nothing happen."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import attacks
import pytest
import torch
import tricks

from w2vtool.errors import CheckpointError
from w2vtool.interop import pickles

torch.set_num_threads(1)
ROOT = Path(__file__).parents[2]
GOLDEN = sorted((ROOT / "tests" / "golden" / "data").glob("*.fairseq.pt"))
GOOD = {"model": {"a": torch.ones(3)}, "args": argparse.Namespace(x=[1])}
# Values that need no code to be harmful are found in what torch made of them: nested without end,
# or of a type that is no data. All else must be refused before.
LATE = {
    *("opcode/function as a value", "opcode/storage as a value", "opcode/two keys alike"),
    *("opcode/doubling lists", "opcode/doubling text", "opcode/deep nesting", "opcode/many tuples"),
    *(f"opcode/{what} that holds itself" for what in ("list", "dict", "object")),
}


@pytest.fixture(scope="module")
def proofs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("proofs")


@pytest.fixture(scope="module")
def corpus(proofs: Path) -> dict[str, bytes]:
    return attacks.corpus(proofs)


@pytest.fixture(scope="module")
def folder(corpus: dict[str, bytes], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The corpus as files, numbered in its order."""
    made = tmp_path_factory.mktemp("corpus")
    for i, data in enumerate(corpus.values()):
        (made / f"{i:03d}.pt").write_bytes(data)
    return made


def write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_every_malicious_file_is_refused_and_before_a_tensor_is_built(
    corpus: dict[str, bytes], folder: Path, proofs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loads: list[Any] = []
    real = torch.load
    monkeypatch.setattr(torch, "load", lambda *a, **k: loads.append(a) or real(*a, **k))
    before, wrong = list(proofs.iterdir()), {}
    for name, path in zip(corpus, sorted(folder.iterdir()), strict=True):
        loads.clear()
        try:
            wrong[name] = f"loaded: {pickles.load(path)!r:.80}"
        except CheckpointError as exc:
            if exc.where != str(path) or "weights_only" in str(exc) or "add_safe" in str(exc):
                wrong[name] = str(exc)
        if bool(loads) != (name in LATE):
            wrong[name] = "read by torch" if loads else "refused earlier than it says here"
    assert wrong == {}
    assert list(proofs.iterdir()) == before
    assert len(corpus) - len(LATE) > 250


def test_the_good_file_that_attacks_are_made_from_loads(tmp_path: Path) -> None:
    path = write(tmp_path / "good.pt", attacks.packed(tricks.body(tricks.tensor())))
    loaded = pickles.load(path)
    assert loaded["model"] == {}
    assert torch.equal(loaded["args"], torch.zeros(4))


def test_payloads_work_where_nothing_guards(
    corpus: dict[str, bytes], folder: Path, proofs: Path
) -> None:
    armed = [name for name in corpus if name.startswith(("zip/", "old/"))]
    files = [str(folder / f"{list(corpus).index(name):03d}.pt") for name in armed]
    script = (
        "import contextlib, sys, torch\n"
        "for path in sys.argv[1:]:\n"
        "    with contextlib.suppress(Exception):\n"
        "        torch.load(path, weights_only=False)\n"
    )
    expected = {name[4:] for name in armed}
    for form in ("zip/", "old/"):
        chosen = [f for f, name in zip(files, armed, strict=True) if name.startswith(form)]
        subprocess.run([sys.executable, "-c", script, *chosen], capture_output=True, check=True)
        end = time.monotonic() + 5  # some start a process and do not wait for it
        while (
            missing := expected - {path.name for path in proofs.iterdir()}
        ) and time.monotonic() < end:
            time.sleep(0.05)
        assert missing == set()
        for path in proofs.iterdir():
            path.rmdir() if path.is_dir() else path.unlink()


AUDIT = """
import json, sys
from pathlib import Path
from w2vtool.errors import CheckpointError
from w2vtool.interop import pickles

*good, folder = map(Path, sys.argv[1:])
for path in good:
    pickles.load(path)
events, refused, loaded, on = [], 0, [], True
watched = ("exec", "compile", "import", "pickle.find_class", "marshal.", "code.", "socket.",
           "subprocess.", "os.", "shutil.", "tempfile.", "ctypes.", "urllib.", "http.", "sys._get")
quiet = ("os.listdir", "os.scandir")

def hook(event, arguments):
    if not on:
        return
    if event == "open":
        mode, flags = arguments[1:3]
        if set(mode or "r") & set("wax+") or flags & 0o3103:  # write, create, truncate, append
            events.append([event, repr(arguments)])
    elif event.startswith(watched) and event not in quiet:
        events.append([event, repr(arguments)])

paths = sorted(folder.iterdir())
sys.addaudithook(hook)
for path in [*paths, *good]:
    try:
        pickles.load(path)
        loaded.append(path.name)
    except CheckpointError:
        refused += 1
on = False
open(folder.parent / "seen.json", "w").write(
    json.dumps({"events": events, "refused": refused, "loaded": loaded}))
"""


def audit(folder: Path, good_files: list[Path]) -> dict[str, Any]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    subprocess.run(
        [sys.executable, "-c", AUDIT, *map(str, good_files), str(folder)],
        check=True,
        env=environment,
        timeout=120,
    )
    return json.loads((folder.parent / "seen.json").read_text())


def test_an_audit_hook_sees_nothing_run_opened_for_writing_imported_or_connected(
    corpus: dict[str, bytes], folder: Path, tmp_path: Path
) -> None:
    plain = attacks.packed(tricks.body(tricks.tensor()))
    files = [write(tmp_path / "plain.pt", plain), tmp_path / "new.pt", tmp_path / "old.pt"]
    for path in files[1:]:
        torch.save(GOOD, path, _use_new_zipfile_serialization=path.stem == "new")
    seen = audit(folder, [*files, *GOLDEN])
    assert seen["events"] == []
    assert seen["refused"] == len(corpus)
    assert seen["loaded"] == [path.name for path in [*files, *GOLDEN]]


def test_the_audit_hook_would_see_an_attack(tmp_path: Path, monkeypatch: Any) -> None:
    script = AUDIT.replace("        pickles.load(path)\n", "        unsafe(path)\n").replace(
        "import pickles\n", "import pickles\nimport torch\n"
        "def unsafe(path): torch.load(path, weights_only=False)\n"
    )  # fmt: skip
    monkeypatch.setattr(sys.modules[__name__], "AUDIT", script)
    (tmp_path / "corpus").mkdir()
    value = tricks.call("builtins.open", tricks.text(str(tmp_path / "proof")), tricks.text("w"))
    write(tmp_path / "corpus" / "evil.pt", attacks.packed(tricks.body(value)))
    events = {event for event, _ in audit(tmp_path / "corpus", [])["events"]}
    assert {"pickle.find_class", "open"} <= events


def test_all_problems_are_named_at_once_and_cannot_move_the_cursor(tmp_path: Path) -> None:
    value = tricks.call("os.system") + tricks.call("os.evil\x1b[2J") + b"\x8c\x01a(iposix\nfork\n"
    path = write(tmp_path / "evil.pt", attacks.packed(tricks.body(value)))
    with pytest.raises(CheckpointError) as caught:
        pickles.load(path)
    for name in ("os.system", r"os.evil\x1b[2J", "SHORT_BINUNICODE", "INST posix.fork"):
        assert name in caught.value.what
    assert "\x1b" not in str(caught.value)


@pytest.mark.parametrize(
    ("method", "answer"),
    [
        ("get_all_records", ["data.pkl"]),
        ("get_record_offset", 100),
        ("get_record_size", 100),
        ("get_record", b"another pickle"),
    ],
)
def test_an_archive_that_torch_sees_otherwise_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str, answer: Any
) -> None:
    real = torch._C.PyTorchFileReader

    class Reader:
        def __init__(self, path: str) -> None:
            self.real = real(path)

        def __getattr__(self, name: str) -> Any:
            return (lambda *_: answer) if name == method else getattr(self.real, name)

    torch.save(GOOD, path := tmp_path / "m.pt")
    pickles.load(path)
    monkeypatch.setattr(torch._C, "PyTorchFileReader", Reader)
    with pytest.raises(CheckpointError, match="two readers"):
        pickles.load(path)
