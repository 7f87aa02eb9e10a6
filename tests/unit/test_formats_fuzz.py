"""Anything at all as a file of each format: rows or an error with a place, never a traceback."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from w2vtool import manifest
from w2vtool.errors import UserError
from w2vtool.formats import convert
from w2vtool.manifest import Utterance
from w2vtool.rows import record, record_problems

HEADS = {  # format → the file, and what makes a line of it look right
    "fairseq": ("train.tsv", [b"/root\n", b"a.wav\t160\n", b"x.zip:1:2\t9\n", b"\t", b":"]),
    "nemo": ("n.json", [b'{"audio_filepath": "a", "duration": 1}\n', b'"offset": ', b"1e999"]),
    "kaldi": ("wav.scp", [b"u /a.wav\n", b"u cat /a.wav |\n", b"u flac -cd a |\n", b"|", b" '"]),
    "lhotse": (
        "c.jsonl",
        [
            b'{"id": "c", "start": 0, "duration": 1, "supervisions": [], "recording": ',
            b'{"sampling_rate": 1, "sources": [{"type": "file", "source": "/a"}]}}\n',
            b'"supervisions": [{"custom": 1}]',
        ],
    ),
    "csv": ("t.csv", [b"audio,duration,text\n", b'a.wav,1,"x"\n', b'"', b",", b"\r"]),
    "hf": ("metadata.csv", [b"file_name,duration\n", b"a.wav,1\n", b"../a,1\n", b'"', b","]),
}
STRANGE = [b"\xff", b"\xef\xbb\xbf", b"\xff\xfe", b"\0", b"\n", b"\r\n", b"nan", b"-1", b"\xe2\x80"]
STRANGE += [b"{", b"[", b"null", b"\\ud800", "‮é🎉\u2028".encode(), b"9" * 400, b"[" * 5000]


@pytest.mark.parametrize("kind", sorted(HEADS))
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_whatever_a_file_holds_gives_rows_or_an_error_that_names_it(
    kind: str, data: st.DataObject
) -> None:
    name, pieces = HEADS[kind]
    parts = st.lists(st.sampled_from([*pieces, *STRANGE]) | st.binary(max_size=6), max_size=12)
    folder = Path(tempfile.mkdtemp())
    try:
        path = folder / name
        path.write_bytes(b"".join(data.draw(parts)))
        if kind == "fairseq" and data.draw(st.booleans()):
            (folder / "train.ltr").write_bytes(b"".join(data.draw(parts)))
        if kind == "kaldi":
            for other in ("segments", "text", "utt2dur"):
                (folder / other).write_bytes(b"".join(data.draw(parts)))
        source = folder if kind in ("kaldi", "hf") else path
        try:
            found = list(convert.read(source, kind))
        except UserError as error:
            assert str(folder) in str(error)
        else:
            assert found and not [
                problem for row in found for problem in record_problems(record(row))
            ]
    finally:
        shutil.rmtree(folder)


TEXTS = ["A\tB", "A\nB", "A\r", "\u202eA", "\U0001f469\u200d\U0001f467", "\0", "\x85A", " A ", ""]
TEXTS += ["A|B", '"', "e\u0301", "X" * 10**6]


@pytest.mark.parametrize("kind", ["fairseq", "nemo", "kaldi", "lhotse", "csv", "hf"])
@pytest.mark.parametrize("text", TEXTS, ids=lambda text: ascii(text[:6]))
def test_a_strange_text_comes_back_as_it_was_or_is_refused_or_named_as_lost(
    kind: str, text: str, tmp_path: Path
) -> None:
    name = {"fairseq": "t.tsv", "csv": "t.tsv", "kaldi": "d", "hf": "d"}.get(kind, "x.jsonl")
    manifest.write(tmp_path / "in.jsonl", [Utterance("a", "/a.wav", 1.0, text=text)])
    try:
        done = convert.convert(tmp_path / "in.jsonl", tmp_path / name, target=kind)
    except UserError as error:
        assert "'a'" in str(error)
        return
    convert.convert(tmp_path / name, tmp_path / "back.jsonl", origin=kind)
    (row,) = manifest.read(tmp_path / "back.jsonl").rows
    assert row.text == text or any("text" in lost for lost in done.lost)


def everything(folder: Path) -> Iterator[str]:
    """All that is in a folder, hidden or not."""
    yield from sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@pytest.mark.parametrize("kind", sorted(HEADS))
@pytest.mark.parametrize(
    "audio", ["../../up.wav", "/etc/../up.wav", "a/../../b.wav", "~/x.wav", "%2e%2e/x.wav", "C:\\x"]
)
def test_no_path_of_a_row_makes_a_file_outside_of_the_output(
    kind: str, audio: str, tmp_path: Path
) -> None:
    (tmp_path / "box" / "in").mkdir(parents=True)
    manifest.write(tmp_path / "box" / "in" / "m.jsonl", [Utterance("../../i", audio, 1.0)])
    before = list(everything(tmp_path))
    out = {"fairseq": "t.tsv", "csv": "t.csv", "kaldi": "", "hf": ""}.get(kind, "x.jsonl")
    try:
        source = tmp_path / "box" / "in" / "m.jsonl"
        convert.convert(source, tmp_path / "box" / "out" / out, target=kind)
    except UserError:
        pass
    new = [path for path in everything(tmp_path) if path not in before]
    assert all(path.startswith("box/out") for path in new), new
