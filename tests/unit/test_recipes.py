"""Every recipe is right in every variant, and LibriSpeech's numbers are the published ones."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from w2vtool import jobs, registry
from w2vtool.config import load_recipe

ROOT = Path(__file__).parents[2]
RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))
LIBRISPEECH = ROOT / "recipes" / "librispeech.yaml"
FINETUNING = ("10m", "1h", "10h", "100h", "960h")


@pytest.fixture(autouse=True)
def only_built_in_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A recipe of the project must not need a plug-in."""
    monkeypatch.setenv("W2VTOOL_PLUGINS", "")


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_is_right_in_every_variant(path: Path) -> None:
    recipe = load_recipe(path)
    for variant in (None, *recipe.variants):
        found, checked = jobs.problems(load_recipe(path, variant))
        assert not found, f"{variant}: {found}"
        assert checked, variant


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_says_what_it_is_how_to_run_it_and_has_a_smoke_variant(path: Path) -> None:
    recipe = load_recipe(path)
    assert recipe.name == path.stem
    assert recipe.about
    assert "smoke" in recipe.variants
    head = path.read_text(encoding="utf-8").partition("\nname:")[0]
    assert re.search(rf"^# +w2vtool .*recipes/{path.name}", head, re.M)


def config(task: str, variant: str | None = None) -> Any:
    """The config of a task in the LibriSpeech recipe."""
    return jobs.prepare(registry.find(task), load_recipe(LIBRISPEECH, variant)).config


# updates, lr, bins, seconds a bin, crop, LayerDrop, Gumbel floor, factor on the encoder's gradient,
# weight of the penalty, dropout of features. Source: paper §4.2; fairseq wav2vec2_base_librispeech,
# its README (LARGE on 960 h) and wav2vec2_large_librivox but for lr and updates, as in the recipe
PRETRAINING = {
    None: (400_000, 5e-4, 64, 87.5, 15.625, 0.05, 0.5, 0.1, 10, 0.1),
    "large": (250_000, 3e-4, 128, 75, 20, 0.2, 0.1, 0.03, 10, 0.1),
    "large-lv60k": (600_000, 3e-4, 128, 75, 20, 0, 0.1, 1, 0, 0),
}


@pytest.mark.parametrize("variant", PRETRAINING)
def test_pretraining_has_the_published_numbers(variant: str | None) -> None:
    found = config("pretrain", variant)
    loop, objective, drop = found.loop, found.objective, found.dropouts
    assert PRETRAINING[variant] == (
        loop.updates,
        found.optim.lr,
        loop.bins,
        loop.bin_seconds,
        loop.max_seconds,
        drop.layer_drop,
        objective.gumbel[1],
        objective.feature_gradient,
        objective.penalty_weight,
        drop.features,
    )
    assert drop.hidden == drop.attention == drop.input == drop.features
    assert drop.activation == 0
    assert loop.min_seconds == 2
    assert (objective.negatives, objective.logit_temperature) == (100, 0.1)
    assert (objective.gumbel[0], objective.gumbel[2], objective.diversity_weight) == (
        2,
        0.999995,
        0.1,
    )
    assert (found.mask.probability, found.mask.length) == (0.65, 10)
    assert found.mask.channel_probability == 0
    assert found.optim.schedule == "polynomial"
    assert (found.optim.betas, found.optim.eps) == ((0.9, 0.98), 1e-6)
    assert (found.optim.weight_decay, found.optim.clip) == (0.01, 0)


def test_base_is_the_papers_portions() -> None:
    found = config("pretrain")
    assert found.loop.bin_seconds * 16_000 == 1_400_000
    assert found.loop.max_seconds * 16_000 == 250_000
    assert found.loop.bins * found.loop.bin_seconds == 5600
    assert found.optim.warmup * found.loop.updates == 32_000
    assert found.data.train == ("train-clean-100", "train-clean-360", "train-other-500")
    assert found.data.valid == ("dev-other",)


def test_large_is_the_papers_network() -> None:
    large, libri_light = config("pretrain", "large").model, config("pretrain", "large-lv60k").model
    for model in (large, libri_light):
        assert (model.layers, model.width, model.ffn_width, model.heads) == (24, 1024, 4096, 16)
        assert model.final_width == 768
    assert (large.extractor_norm, large.norm_first, large.normalize) == ("group", False, False)
    assert libri_light.extractor_norm == "layer"
    assert libri_light.norm_first and libri_light.normalize and libri_light.conv_bias


# lr, updates, updates with a frozen encoder, mask, channel mask, LayerDrop (fairseq base_*.yaml),
# weight of the 4-gram, score of a word (paper, decoding parameters of models trained on 960 h)
CTC = {
    "10m": (5e-5, 13_000, 10_000, 0.65, 0.25, 0.1, 3.23, -0.26),
    "1h": (5e-5, 13_000, 10_000, 0.65, 0.25, 0.1, 2.90, -1.62),
    "10h": (5e-5, 20_000, 10_000, 0.65, 0.5, 0.05, 2.46, -0.59),
    "100h": (3e-5, 80_000, 0, 0.65, 0.5, 0.1, 2.15, -0.52),
    "960h": (1e-4, 320_000, 0, 0.5, 0.1, 0.1, 1.74, 0.52),
}


@pytest.mark.parametrize("variant", FINETUNING)
def test_finetuning_has_the_published_numbers(variant: str) -> None:
    found, beam = config("finetune-ctc", variant), config("decode", variant).beam
    assert CTC[variant] == (
        found.optim.lr,
        found.loop.updates,
        found.freeze_updates,
        found.mask.probability,
        found.mask.channel_probability,
        found.dropouts.layer_drop,
        beam.lm_weight,
        beam.word_score,
    )
    assert beam.width == 1500
    assert found.loop.bins * found.loop.bin_seconds == 1600  # 3.2 M samples × 8
    assert found.loop.bin_seconds * 16_000 == 3_200_000
    assert (found.mask.length, found.mask.channel_length) == (10, 64)
    drop = found.dropouts
    assert (drop.hidden, drop.attention, drop.activation, drop.final) == (0, 0, 0.1, 0)
    assert found.feature_gradient == 0
    optim = found.optim
    assert (optim.schedule, optim.warmup, optim.hold, optim.floor) == ("tri-stage", 0.1, 0.4, 0.05)
    assert (optim.betas, optim.eps, optim.weight_decay) == ((0.9, 0.98), 1e-8, 0)
    assert found.data.valid == ("dev-other",)
    assert found.model.init == ROOT / "runs" / "librispeech" / "pretrain"


@pytest.mark.parametrize("variant", FINETUNING)
def test_a_finetuning_set_never_pretrains_and_scores_both_test_sets(variant: str) -> None:
    chain = jobs.pipeline(load_recipe(LIBRISPEECH, variant), ["data.root=/x"])
    assert "pretrain" not in [job.step for job in chain]
    decoding = [job.config for job in chain if job.ref.name == "decode"]
    assert {found.data.test for found in decoding} == {("test-clean",), ("test-other",)}
    assert len({found.data.manifests for found in decoding}) == 2  # each has a test.jsonl
    assert {found.checkpoint for found in decoding} == {chain[1].folder}


def test_the_limited_sets_are_those_of_libri_light() -> None:
    parts = {variant: config("finetune-ctc", variant).data.train for variant in FINETUNING}
    folder = "librispeech_finetuning"
    assert parts["10m"] == (f"{folder}/1h/0",)
    assert parts["1h"] == (f"{folder}/1h",)
    assert parts["10h"] == (f"{folder}/1h", f"{folder}/9h")
    assert parts["100h"] == ("train-clean-100",)
    assert parts["960h"] == config("pretrain").data.train


def test_libri_light_must_be_given() -> None:
    assert config("pretrain", "large-lv60k").data.train == ()


def test_the_readme_has_every_recipe_with_its_variants_and_its_source() -> None:
    text = (ROOT / "recipes" / "README.md").read_text(encoding="utf-8")
    for path in RECIPES:
        (row,) = [line for line in text.splitlines() if line.startswith(f"| [{path.name}]")]
        variants = {*load_recipe(path).variants} - {"smoke"}
        assert (
            set(re.findall(r"`(\w[\w-]*)`", row.rpartition("|")[0].rpartition("|")[2])) == variants
        )
        assert len([line for line in text.splitlines() if line.startswith(f"| {path.stem} |")]) == 1


# fairseq vox_*.yaml, and the paper's weights of the 4-gram for LARGE (LV-60k): lr, updates, mask of
# time and channels, seconds of an update, weight and score
@pytest.mark.parametrize(
    ("variant", "expected"),
    [
        ("10m", (1e-4, 13_000, 0.65, 0.25, 1600, 3.86, -1.18)),
        ("1h", (3e-4, 13_000, 0.75, 0.25, 1600, 3.09, -2.33)),
        ("10h", (1e-4, 20_000, 0.75, 0.25, 1600, 2.12, -0.90)),
        ("100h", (3e-5, 80_000, 0.5, 0.5, 1600, 2.15, -0.52)),
        ("960h", (3e-5, 320_000, 0.5, 0.25, 1920, 1.57, -0.64)),
    ],
)
def test_libri_light_is_tuned_as_published(variant: str, expected: tuple[float, ...]) -> None:
    recipe = load_recipe(ROOT / "recipes" / "librilight.yaml", variant)
    found = jobs.prepare(registry.find("finetune-ctc"), recipe).config
    beam = jobs.prepare(registry.find("decode"), recipe).config.beam
    assert expected == (
        found.optim.lr,
        found.loop.updates,
        found.mask.probability,
        found.mask.channel_probability,
        found.loop.bins * found.loop.bin_seconds,
        beam.lm_weight,
        beam.word_score,
    )
    assert (found.freeze_updates, found.dropouts.layer_drop, beam.width) == (10_000, 0.1, 1500)
    assert found.model.init == ROOT / "runs" / "librilight" / "pretrain"
    chain = jobs.pipeline(recipe, ["data.root=/x"])
    assert [job.step for job in chain] == ["manifest", "finetune-ctc", "decode", "decode-clean"]


def test_both_recipes_pretrain_large_in_the_same_way() -> None:
    large = config("pretrain", "large-lv60k")
    found = jobs.prepare(
        registry.find("pretrain"), load_recipe(ROOT / "recipes" / "librilight.yaml")
    ).config
    for part in ("dropouts", "objective", "optim", "loop"):
        assert getattr(found, part) == getattr(large, part), part
    assert found.model.sizes() == large.model.sizes()
