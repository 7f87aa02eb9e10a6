"""Recipes: what is refused, what wins, where a value came from, and that a dump loads back."""

from __future__ import annotations

import enum
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import field_validator, model_validator

from w2vtool import config as cfg
from w2vtool.architecture import ModelConfig
from w2vtool.errors import ConfigError
from w2vtool.nodes import MAX_DEPTH, MAX_NODES, Node
from w2vtool.schema import Config, knob


class Optim(Config):
    """How fast."""

    lr: float = knob(5e-4, "Rate.", gt=0, le=1)
    betas: tuple[float, float] = knob((0.9, 0.98), "Decay rates.")
    schedule: Literal["poly", "tri"] = knob("poly", "Shape.")


class Data(Config):
    """What to read."""

    train: Path | None = knob(None, "A manifest.")
    files: list[Path] = knob([], "Files.")
    split: Path | str = knob("train", "A manifest, or a part.")
    lang: str = knob("en", "Language.")


class Toy(Config):
    """A task's config."""

    data: Data = knob(Data(), "Data.")
    optim: Optim = knob(Optim(), "Optimizer.")
    steps: int = knob(10, "Updates.", ge=1)
    fast: bool = knob(False, "Fast.")
    limit: float | Literal["none"] = knob("none", "Limit.")
    out: Path = knob(Path("run:toy/out.txt"), "Where.")
    extra: dict[str, str] = knob({}, "More.")
    seed: int = knob(1, "Seed.")


def node(text: str, **more: Any) -> Node:
    return cfg.read_yaml(text, "r.yaml", **more)


def build(text: str, model: Any = Toy, work: Path | None = None, **more: Any) -> Any:
    return cfg.build(model, node(text), work=work, **more)[0]


def message(text: str, model: Any = Toy, **more: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        build(text, model, **more)
    return str(caught.value)


# -- reading ----------------------------------------------------------------------------------


def test_scalars_stay_text_whatever_yaml_would_make_of_them() -> None:
    for text in ("5e-4", "no", "0777", "2001-01-01", "1_000", "true", ".inf", "1:30", "=", "<<"):
        found = node(f"key: {text}").value["key"]
        assert found.value == text
    assert node("key: 'null'").value["key"].value == "null"


def test_null_is_none_only_without_quotes() -> None:
    found = node('a:\nb: ~\nc: null\nd: ""\ne: "~"').value
    assert [child.value for child in found.values()] == [None, None, None, "", "~"]


def test_an_origin_is_the_line_of_the_key() -> None:
    found = node("# first\na:\n  b:\n    - 1\n    - 2\n").value["a"].value["b"]
    assert found.origin == "r.yaml:3"
    assert [item.origin for item in found.value] == ["r.yaml:4", "r.yaml:5"]


def test_an_empty_document_is_an_empty_section() -> None:
    assert node("").value == {} and node("# only a comment\n").value == {}


BOMB = "a: &a [x, x, x]\n" + "".join(
    f"{chr(98 + i)}: &{chr(98 + i)} [*{chr(97 + i)}, *{chr(97 + i)}]\n" for i in range(20)
)


@pytest.mark.parametrize(
    ("text", "what"),
    [
        (BOMB, "r.yaml:1: an anchor (&a) is not allowed"),
        ("a: 1\nb: *a\n", "r.yaml:2: an alias (*a) is not allowed"),
        ("a: !!python/object:os.system x", "r.yaml:1: a tag (tag:yaml.org,2002:python"),
        ("a: !x 1", "r.yaml:1: a tag (!x) is not allowed"),
        (
            "a: 1\nb: 2\na: 3\n",
            "r.yaml:3: key 'a' is given twice\n  hint: it was first given at r.y",
        ),
        ("a: {b: 1, b: 2}", "r.yaml:1: key 'b' is given twice"),
        ("a: 1\n---\nb: 2\n", "r.yaml:2: a second document"),
        ("? [a]\n: 1\n", "r.yaml:1: a key must be plain text"),
        ("a: [1, 2\nb: 3\n", "not valid YAML"),
        ("a: b: c\n", "r.yaml:1: not valid YAML"),
        ("a: 1\nb: \x07\n", "r.yaml:2: "),
        ("[" * 20_000, f"r.yaml:1: nested deeper than {MAX_DEPTH} levels"),
        ("- " * 20_000, f"r.yaml:1: nested deeper than {MAX_DEPTH} levels"),
        ("{a: " * 20_000, f"r.yaml:1: nested deeper than {MAX_DEPTH} levels"),
        ("[" + "1," * (MAX_NODES + 1) + "]", f"r.yaml:1: more than {MAX_NODES:,} values"),
        ("a: " + "x" * 1_000_001, "r.yaml: larger than 1,000,000 bytes"),
        ("a: " + "ü" * 600_000, "r.yaml: larger than 1,000,000 bytes"),
    ],
    ids=lambda value: repr(value[:24]),
)
def test_hostile_or_ambiguous_yaml_is_refused_with_its_place(text: str, what: str) -> None:
    with pytest.raises(ConfigError) as caught:
        node(text)
    assert what in str(caught.value)


def test_the_deepest_allowed_document_is_read() -> None:
    found, depth = node("[" * MAX_DEPTH + "]" * MAX_DEPTH), 1
    while found.value:
        found, depth = found.value[0], depth + 1
    assert depth == MAX_DEPTH
    with pytest.raises(ConfigError):
        node("[" * (MAX_DEPTH + 1) + "]" * (MAX_DEPTH + 1))


# -- recipes ----------------------------------------------------------------------------------


def write(folder: Path, **files: str) -> Path:
    for name, text in files.items():
        (folder / f"{name}.yaml").write_text(text, encoding="utf-8")
    return folder / f"{next(iter(files))}.yaml"


def test_default_then_parent_then_recipe_then_variant_then_command_line(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        child="extends: base.yaml\ntoy: {steps: 3, optim: {schedule: tri}}\n"
        "variants:\n  smoke: {toy: {fast: yes, steps: 4}}\n",
        base="toy:\n  steps: 2\n  optim: {lr: 0.1}\n  seed: 7\nvariants: {big: {toy: {}}}\n",
    )
    recipe = cfg.load_recipe(path, "smoke")
    section = cfg.section(recipe.node, "toy", Toy)
    section = cfg.apply_overrides(section, ["steps=5"])
    config, origins = cfg.build(Toy, section, work=None)
    assert (config.optim.lr, config.seed, config.optim.schedule) == (0.1, 7, "tri")
    assert (config.fast, config.steps, config.data.lang) == (True, 5, "en")
    assert origins["optim.lr"] == f"{tmp_path}/base.yaml:3"
    assert origins["optim.schedule"] == f"{tmp_path}/child.yaml:2"
    assert origins["steps"] == "command line (steps)"
    assert "data.lang" not in origins
    assert recipe.label == "child-smoke" and recipe.variants == ("big", "smoke")


def test_name_and_about_are_not_inherited(tmp_path: Path) -> None:
    path = write(tmp_path, child="extends: base.yaml", base="name: b\nabout: The base.")
    assert (cfg.load_recipe(path).name, cfg.load_recipe(path).about) == ("child", "")
    assert cfg.load_recipe(tmp_path / "base.yaml").name == "b"


@pytest.mark.parametrize(
    ("files", "what"),
    [
        (
            {"a": "extends: b.yaml", "b": "extends: a.yaml"},
            "b.yaml:1: extends: goes round in a circle",
        ),
        ({"a": "x: {}\nextends: nope.yaml"}, "a.yaml:2: no such recipe: "),
        ({"a": "extends: [b.yaml]"}, "a.yaml:1: extends: expected one file name"),
        ({"a": "variants: [x]"}, "a.yaml:1: variants: expected a section with keys"),
        ({"a": "variants:\n  s: 3"}, "a.yaml:2: variant 's': expected a section with keys"),
        ({"a": "variants:\n  s:\n    extends: b.yaml"}, "a.yaml:3: 'extends' cannot be part of"),
        ({"a": "variants:\n  s: {variants: {}}"}, "a.yaml:2: 'variants' cannot be part of"),
        ({"a": "- x"}, "a.yaml:1: expected sections with keys"),
        ({"a": "name: ../x"}, "a.yaml:1: name: '../x' is not usable"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_a_wrong_recipe_says_where(files: dict[str, str], what: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        cfg.load_recipe(write(tmp_path, **files))
    assert what in str(caught.value)


def test_missing_recipes_and_variants_come_with_a_suggestion(tmp_path: Path) -> None:
    path = write(tmp_path, digits="variants: {smoke: {}}")
    with pytest.raises(ConfigError, match=r"did you mean 'digits.yaml'"):
        cfg.load_recipe(tmp_path / "digit.yaml")
    with pytest.raises(ConfigError, match="did you mean 'smoke'"):
        cfg.load_recipe(path, "smok")
    with pytest.raises(ConfigError, match="cannot be read"):
        cfg.load_recipe(tmp_path)
    (tmp_path / "latin.yaml").write_bytes(b"a: \xff\n")
    with pytest.raises(ConfigError, match="not UTF-8"):
        cfg.load_recipe(tmp_path / "latin.yaml")


def test_a_section_is_the_shared_ones_that_the_config_reads_under_its_own() -> None:
    class Train(Config):
        data: Data = knob(Data(), "Data.")
        text: list[Path] = knob([], "Not the shared section of that name.")

    recipe = node(
        "data: {lang: de, train: /t}\ntext: {case: upper}\nmodel: {}\n"
        "lm: {train: {data: {lang: fr}}}\n"
    )
    config, origins = cfg.build(Train, cfg.section(recipe, "lm train", Train), work=None)
    assert (config.data.lang, config.data.train) == ("fr", Path("/t"))
    assert config.text == [] and origins["data.lang"] == "r.yaml:4"


def test_steps_have_names_and_values_of_their_own() -> None:
    text = "pipeline:\n- lm train\n- decode\n- {task: decode, name: decode-lm, with: {beam: 5}}\n"
    recipe = cfg.Recipe(Path("r.yaml"), "r", node(text))
    found = cfg.steps(recipe)
    assert [(s.name, s.task) for s in found] == [
        ("lm-train", "lm train"),
        ("decode", "decode"),
        ("decode-lm", "decode"),
    ]
    assert found[2].values.value["beam"].value == "5"
    bad = "pipeline:\n- decode\n- decode\n- {tusk: decode}\n- {name: x}\n"
    with pytest.raises(ConfigError) as caught:
        cfg.steps(cfg.Recipe(Path("r.yaml"), "r", node(bad)))
    for what in (
        "r.yaml:3: two steps named 'decode'",
        "r.yaml:4: unknown key 'tusk'",
        "yaml:5: a step",
    ):
        assert what in str(caught.value)


# -- key=value --------------------------------------------------------------------------------


def test_overrides_are_text_unless_they_are_written_as_yaml() -> None:
    words = [
        "lang=no",
        "a.b={c: 1}",
        "a.b.d=2",
        "list=[1, x]",
        "none=null",
        'word="null"',
        "e=",
        "x=a=b",
    ]
    found = cfg.apply_overrides(node("lang: de"), words).value
    assert found["lang"].value == "no"
    assert {k: v.value for k, v in found["a"].value["b"].value.items()} == {"c": "1", "d": "2"}
    assert [item.value for item in found["list"].value] == ["1", "x"]
    assert (found["none"].value, found["word"].value) == (None, "null")
    assert (found["e"].value, found["x"].value) == ("", "a=b")


@pytest.mark.parametrize("word", ["novalue", "=x", "a..b=1", ".a=1", "a.=1", "1a=2", "a b=1"])
def test_a_word_without_a_key_is_refused(word: str) -> None:
    with pytest.raises(ConfigError, match="not an override"):
        cfg.apply_overrides(node(""), [word])


def test_broken_yaml_on_the_command_line_names_its_key() -> None:
    with pytest.raises(ConfigError, match=r"command line \(a.b\)"):
        cfg.apply_overrides(node(""), ["a.b=[1, 2"])


# -- building ---------------------------------------------------------------------------------


def test_text_becomes_what_the_field_says() -> None:
    config = build(
        "steps: 400_000\noptim: {lr: 5e-4, betas: [0.9, 1e0]}\nfast: yes\ndata: {lang: no}\n"
        "limit: 2\nextra: {a: 1}\n"
    )
    assert (config.steps, config.optim.lr, config.optim.betas) == (400_000, 5e-4, (0.9, 1.0))
    assert (config.fast, config.data.lang, config.limit, config.extra) == (
        True,
        "no",
        2.0,
        {"a": "1"},
    )


def test_an_empty_section_is_a_section() -> None:
    assert build("optim:\ndata:\n") == Toy(out=Path.cwd() / "runs/toy/out.txt")


def test_all_errors_come_at_once_in_the_order_of_the_file() -> None:
    text = "steps: 0\noptim:\n  lr: fast\n  betas: [0.9]\n  shedule: tri\nfast: perhaps\nstepz: 3\n"
    lines = message(text).splitlines()
    assert lines[0] == "6 problems"
    assert [line for line in lines[1:] if not line.startswith("  ")] == [
        "r.yaml:1: steps: '0' is out of range, must be at least 1",
        "r.yaml:3: optim.lr: expected a number, got 'fast'",
        "r.yaml:4: optim.betas: expected 2 items, got 1",
        "r.yaml:5: unknown key 'shedule' in optim",
        "r.yaml:6: fast: expected true or false, got 'perhaps'",
        "r.yaml:7: unknown key 'stepz'",
    ]
    assert "  hint: did you mean 'schedule'?" in lines and "  hint: did you mean 'steps'?" in lines


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("steps: 1.5", "steps: expected a whole number, got '1.5'"),
        ("optim: {lr: nan}", "optim.lr: expected a number, got 'nan'"),
        ("optim: {betas: [1, 2, 3]}", "optim.betas: expected 2 items, got 3"),
        ("steps:", "steps: expected a whole number, got nothing"),
        ("steps: [1]", "steps: expected a whole number, got a list"),
        ("optim: 3", "optim: expected a section with keys, got '3'"),
        ("data: {files: a.wav}", "data.files: expected a list, got 'a.wav'\n  hint: write [a.wav]"),
        ("data: {train: ''}", "data.train: expected a path, got ''"),
        (
            "optim: {schedule: pol}",
            "expected one of poly, tri, got 'pol'\n  hint: did you mean 'poly'",
        ),
        ("optim: {lr: 2}", "optim.lr: '2' is out of range, must be at most 1"),
        ("limit: x", "limit: expected a number or one of none, got 'x'"),
        ("lr: 3", "unknown key 'lr'\n  hint: did you mean 'optim.lr'?"),
        ("data: {train: 'run:a/b'}", "data.train: 'run:a/b' needs a work folder"),
        ("data: {train: 'run:'}", "data.train: expected a path, got 'run:'"),
    ],
)
def test_an_error_says_what_was_expected_and_what_was_given(text: str, what: str) -> None:
    assert message(text).startswith("r.yaml:1: ") and what in message(text)


def test_a_missing_value_names_the_flag_that_gives_it() -> None:
    class Needs(Config):
        class Inner(Config):
            path: Path = knob(doc="A file.")

        lm: Inner = knob(doc="A model.")

    text = message("lm: {}", Needs, flags={"--lm": "lm.path"})
    assert text.startswith(
        "r.yaml:1: lm.path: required, but not given\n  hint: give --lm or lm.path="
    )


def test_what_a_validator_says_is_an_error_at_its_section() -> None:
    class Even(Config):
        a: int = knob(1, "A.")
        b: int = knob(1, "B.")

        @field_validator("a")
        @classmethod
        def _even(cls, value: int) -> int:
            if value % 2 == 0:
                return value
            raise ValueError(f"{value} is odd")

        @model_validator(mode="after")
        def _ordered(self) -> Even:
            if self.a > self.b:
                raise ValueError("a is larger than b")
            return self

    class Outer(Config):
        even: Even | None = knob(None, "Numbers.")

    assert message("x:\neven:\n  a: 3\n", Outer).splitlines()[-1] == "r.yaml:3: even.a: 3 is odd"
    assert message("even:\n  a: 4\n  b: 2", Outer) == "r.yaml:1: even: a is larger than b"


def test_presets_of_a_before_validator_are_kept_and_overridden() -> None:
    class Uses(Config):
        model: ModelConfig = knob(ModelConfig(), "Model.")

    config, origins = cfg.build(Uses, node("model: {architecture: large, width: 512}"), work=None)
    assert (config.model.layers, config.model.width) == (24, 512)
    text = cfg.dump(config, origins)
    assert [line.split("#")[1].strip() for line in text.splitlines() if " layers:" in line] == [
        "derived"
    ]
    assert cfg.build(Uses, node(text), work=None)[0] == config
    assert "model.width" in message("model: {width: x}", Uses)


def test_a_path_is_relative_to_the_file_that_says_it(tmp_path: Path, monkeypatch: Any) -> None:
    (tmp_path / "recipes" / "deep").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    path = write(
        tmp_path / "recipes" / "deep",
        child="extends: ../base.yaml\ntoy: {data: {files: [a.wav, ../b.wav, /c.wav, ~/d.wav]}}\n",
    )
    write(tmp_path / "recipes", base="toy: {data: {train: m.jsonl, split: dev-clean}}\n")
    section = cfg.section(cfg.load_recipe(path).node, "toy", Toy)
    given = cfg.apply_overrides(section, ["out=o.txt"])
    config = cfg.build(Toy, given, work=None)[0]
    here = tmp_path.resolve() / "recipes"
    assert config.data.train == here / "m.jsonl" and config.out == tmp_path / "o.txt"
    wanted = [here / "deep/a.wav", here / "b.wav", Path("/c.wav"), Path.home() / "d.wav"]
    assert config.data.files == wanted


def test_run_paths_are_below_the_work_folder_also_in_defaults(tmp_path: Path) -> None:
    config = build("data: {train: 'run:manifest/a.jsonl'}", work=tmp_path)
    assert config.data.train == tmp_path / "manifest/a.jsonl"
    assert config.out == tmp_path / "toy/out.txt"


def test_text_that_may_be_a_path_is_one_if_it_looks_like_one(tmp_path: Path) -> None:
    assert build("data: {split: dev-clean}").data.split == "dev-clean"
    assert build("data: {split: dev.jsonl}").data.split == Path.cwd() / "dev.jsonl"
    assert build("data: {split: 'run:x'}", work=tmp_path).data.split == tmp_path / "x"


# -- printing ---------------------------------------------------------------------------------


class Colour(enum.Enum):
    RED = "red"


class Leaf(Config):
    """Everything that a value can be."""

    word: str = knob("", "Text.")
    maybe: str | None = knob(None, "Text or nothing.")
    whole: int = knob(0, "Whole number.")
    real: float = knob(0.0, "Number.")
    yes: bool = knob(True, "Switch.")
    path: Path | None = knob(None, "Path.")
    colour: Colour = knob(Colour.RED, "Colour.")
    words: tuple[str, ...] = knob((), "Words.")
    pairs: list[tuple[int, float]] = knob([], "Pairs.")
    table: dict[str, str | None] = knob({}, "Table.")


class Tree(Config):
    """Nested, in lists too."""

    leaf: Leaf = knob(Leaf(), "A leaf.")
    other: Leaf | None = knob(None, "Perhaps a leaf.")
    many: list[Leaf] = knob([], "Leaves.")


WORDS = st.text(max_size=12) | st.sampled_from(
    [
        "null",
        "~",
        "",
        " ",
        "no",
        "1e5",
        "- x",
        "a: b",
        "# c",
        "'",
        '"',
        "[",
        "{}",
        "\n",
        "é",
        "😀",
        "…",
    ]
)
PATHS = st.builds(lambda word: Path("/p") / f"x{word}", st.text("ab ~:#.'é", max_size=6))
LEAVES = st.builds(
    Leaf,
    word=WORDS,
    maybe=st.none() | WORDS,
    whole=st.integers(),
    real=st.floats(allow_nan=False, allow_infinity=False),
    yes=st.booleans(),
    path=st.none() | PATHS,
    words=st.lists(WORDS, max_size=3).map(tuple),
    pairs=st.lists(
        st.tuples(st.integers(), st.floats(allow_nan=False, allow_infinity=False)), max_size=2
    ),
    table=st.dictionaries(WORDS, st.none() | WORDS, max_size=3),
)
TREES = st.builds(Tree, leaf=LEAVES, other=st.none() | LEAVES, many=st.lists(LEAVES, max_size=2))


@settings(max_examples=150, deadline=None)
@given(TREES, st.booleans())
def test_a_dump_loads_back_to_an_equal_config(tree: Tree, commented: bool) -> None:
    text = cfg.dump(tree, {"leaf.word": "r.yaml:1\nx"} if commented else None, task="lm train")
    section = cfg.section(node(text), "lm train", Tree)
    assert cfg.build(Tree, section, work=None)[0] == tree


def test_a_dump_says_where_each_value_is_from() -> None:
    config, origins = cfg.build(Toy, cfg.apply_overrides(node("steps: 3"), ["fast=1"]), work=None)
    lines = cfg.dump(config, origins, task="toy", name="t").splitlines()
    assert lines[:2] == ["name: t", "toy:"]
    comments = {line.split(":")[0].strip(): line.partition(" # ")[2] for line in lines[2:]}
    assert (comments["steps"], comments["fast"]) == ("r.yaml:1", "command line (fast)")
    assert comments["seed"] == "default"


def test_a_task_without_keys_can_be_dumped() -> None:
    class Nothing(Config):
        pass

    assert cfg.dump(Nothing()) == "{}\n"
    text = cfg.dump(Nothing(), task="lm train")
    assert (
        cfg.build(Nothing, cfg.section(node(text), "lm train", Nothing), work=None)[0] == Nothing()
    )


def test_the_schema_knows_sections_groups_variants_and_requires_nothing() -> None:
    class Needs(Config):
        data: Data = knob(Data(), "Data.")
        path: Path = knob(doc="A file.")

    schema = cfg.json_schema({"toy": Toy, "lm train": Needs})
    top = schema["properties"]
    assert {"extends", "variants", "pipeline", "toy", "lm", "data", "name"} == set(top) - {"about"}
    assert set(top["lm"]["properties"]) == {"train"}
    definition = schema["$defs"][top["lm"]["properties"]["train"]["$ref"].rpartition("/")[2]]
    assert set(definition["properties"]) == {"data", "path"} and "required" not in definition
    assert definition["properties"]["path"]["description"] == "A file."
    assert set(schema["$defs"]["variant"]["properties"]) == {
        "toy",
        "lm",
        "data",
        "pipeline",
    }
