"""Corpora are plugged in like tasks: found without an import; a broken one stays where it is."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import toys
from pydantic import ValidationError

from w2vtool import corpora
from w2vtool.errors import ConfigError, DataError, PluginError
from w2vtool.layouts import table
from w2vtool.schema import DataConfig

ROOT = Path(__file__).parents[2]
GOOD = '''"""Waves of a folder."""
from w2vtool.api import Candidate
def scan(root):
    for path in sorted(root.glob("*.wav")):
        yield Candidate(path.stem, path, "hello")
'''


@pytest.fixture
def plugins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("W2VTOOL_PLUGINS", raising=False)
    (tmp_path / "plugins" / "corpora").mkdir(parents=True)
    before = set(sys.modules)
    yield tmp_path / "plugins" / "corpora"
    for name in set(sys.modules) - before:
        if name.startswith("w2vtool_plugin_"):
            del sys.modules[name]


def install(folder: Path, points: str) -> None:
    """A distribution as pip leaves it: only its metadata, so loading it would fail."""
    info = folder / "w2vtool_radio-1.2.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: w2vtool-radio\nVersion: 1.2\nSummary: Radio.\n"
    )
    (info / "entry_points.txt").write_text(f"[w2vtool.corpora]\n{points}\n")


def wave(folder: Path) -> Path:
    import soundfile

    folder.mkdir(exist_ok=True)
    soundfile.write(folder / "a.wav", toys.wave(1), 16_000)
    return folder


def test_every_built_in_layout_is_there_and_is_a_function() -> None:
    found = table.discover()
    assert list(found)[: len(table.BUILT_IN)] == list(table.BUILT_IN)
    for name in table.BUILT_IN:
        assert callable(table.find(name).load())
        assert found[name].summary and not found[name].problem


def test_a_file_is_a_corpus_named_after_it(plugins: Path, tmp_path: Path) -> None:
    (plugins / "my_waves.py").write_text(GOOD)
    (plugins / "_shared.py").write_text("raise SystemExit")
    ref = table.discover()["my-waves"]
    assert (ref.summary, ref.origin) == ("Waves of a folder.", "plugins/corpora/my_waves.py")
    found = corpora.scan(wave(tmp_path / "data"), "my-waves")
    assert [(item.id, item.text) for item in found.candidates] == [("a", "hello")]
    with pytest.raises(ConfigError, match="my-waves has no part 'x'"):
        corpora.scan(f"{tmp_path / 'data'}:x", "my-waves")


def test_listing_runs_nothing(plugins: Path) -> None:
    mark = plugins / "ran"
    (plugins / "nosy.py").write_text(f'"""Nosy."""\nopen({str(mark)!r}, "w")\n')
    assert table.discover()["nosy"].summary == "Nosy."
    assert DataConfig(corpus="nosy").corpus == "nosy"
    assert not mark.exists()


def test_an_entry_point_is_found_with_the_summary_of_its_distribution(
    plugins: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(plugins.parent.parent / "site", "radio = nowhere:scan\nfolder = nowhere:scan")
    monkeypatch.syspath_prepend(str(plugins.parent.parent / "site"))
    (plugins / "radio.py").write_text(GOOD)
    found = table.discover()
    assert (found["radio"].summary, found["radio"].origin) == ("Radio.", "w2vtool-radio 1.2")
    assert found["radio"].shadows == ("plugins/corpora/radio.py",)
    assert (found["folder"].origin, found["folder"].shadows) == ("built-in", ("w2vtool-radio 1.2",))
    with pytest.raises(PluginError, match="No module named 'nowhere'"):
        found["radio"].load()


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("import nowhere_at_all", "cannot be loaded: ModuleNotFoundError"),
        ("raise SystemExit(3)", "cannot be loaded: SystemExit: 3"),
        ("x = 1", "cannot be loaded: AttributeError"),
        ("scan = 42", "is not a function but a value of int"),
        ("def scan(root):\n    yield 1 / 0", "failed: ZeroDivisionError: division by zero"),
        ("def scan(root):\n    return 5", "failed: TypeError"),
        ("def scan(root):\n    yield ('a', root)", "tuple is neither a Candidate nor a Rejected"),
    ],
)
def test_what_is_wrong_with_a_plugin_is_one_line(
    plugins: Path, tmp_path: Path, source: str, said: str
) -> None:
    (plugins / "bad.py").write_text(source)
    assert "folder" in table.discover()
    with pytest.raises(PluginError, match=said) as caught:
        corpora.scan(wave(tmp_path / "data"), "bad")
    assert caught.value.where == "plugins/corpora/bad.py"
    assert "\n" not in caught.value.what


def test_an_error_that_a_plugin_raises_for_people_is_kept(plugins: Path, tmp_path: Path) -> None:
    source = "from w2vtool.api import DataError\ndef scan(root):\n    yield from ()\n"
    (plugins / "picky.py").write_text(f"{source}    raise DataError('no reels', where='x')\n")
    with pytest.raises(DataError, match="no reels"):
        corpora.scan(wave(tmp_path / "data"), "picky")


@pytest.mark.parametrize("name", ["auto", "Big", "two words"])
def test_a_name_that_cannot_be_one_is_listed_with_its_problem(plugins: Path, name: str) -> None:
    (plugins / f"{name}.py").write_text(GOOD)
    ref = table.discover()[name]
    assert ref.problem
    with pytest.raises(PluginError, match="cannot be read"):
        ref.load()


def test_an_unknown_corpus_comes_with_a_suggestion(plugins: Path) -> None:
    (plugins / "radio.py").write_text(GOOD)
    with pytest.raises(ConfigError, match="did you mean 'radio'"):
        table.find("radios")
    with pytest.raises(ConfigError, match=r"known: auto, librispeech, .*, radio"):
        table.find("zzz")
    with pytest.raises(
        ValidationError, match="no corpus layout 'commonvoce'; did you mean 'commonvoice'"
    ):
        DataConfig(corpus="commonvoce")


def test_a_part_is_split_off_only_where_the_path_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "a:b").mkdir()
    assert table.split(tmp_path / "a:b") == (tmp_path / "a:b", "")
    assert table.split(f"{tmp_path}/a:b:c") == (tmp_path / "a:b", "c")
    assert table.split(f"{tmp_path}/:c") == (tmp_path, "c")
    assert table.split(f"{tmp_path}/x:c") == (Path(f"{tmp_path}/x:c"), "")
    assert table.split(tmp_path / "a:b:") == (tmp_path / "a:b:", "")


def test_the_example_reads_prompts(plugins: Path, tmp_path: Path) -> None:
    shutil.copy(ROOT / "plugins" / "corpora" / "prompts.py", plugins)
    wave(tmp_path / "data").joinpath("ann").mkdir()
    (tmp_path / "data" / "a.wav").rename(tmp_path / "data" / "ann" / "1.wav")
    (tmp_path / "data" / "ann" / "prompts.txt").write_text("1 hello you\n2 gone\n3\n")
    found = corpora.scan(tmp_path / "data", "prompts")
    assert [(item.id, item.text, item.speaker) for item in found.candidates] == [
        ("ann-1", "hello you", "ann")
    ]
    assert [(Path(item.path).name, item.reason) for item in found.problems] == [
        ("prompts.txt:2", "missing"),
        ("prompts.txt:3", "bad-line"),
    ]


def test_the_table_costs_no_numpy(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom w2vtool.layouts import table\ntable.discover()\n"
        "print(sorted({'numpy', 'torch', 'pydantic', 'soundfile'} & set(sys.modules)))"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_command_names_parts_and_plugged_corpora(
    w2v: Callable[..., Any], plugins: Path, made: Callable[[str], Path]
) -> None:
    root = made("gigaspeech")
    done = w2v("manifest", f"{root}/GigaSpeech.json:XS", "--out", "xs.jsonl", "--jobs", "1")
    assert done.code == 0, done.err
    assert len(Path("xs.jsonl").read_text().splitlines()) == 2
    assert w2v("manifest", root, "--corpus", "gigaspech", "--out", "a.jsonl").code == 2
    assert w2v("manifest", f"{root}:XXS", "--out", "a.jsonl").code == 2
    (plugins / "bad.py").write_text("import nowhere")
    assert w2v("manifest", root, "--corpus", "bad", "--out", "a.jsonl").code == 4
