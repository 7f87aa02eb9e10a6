"""What a recipe may say: the base of all config models, and the sections that tasks share.

Goes in: nothing. Goes out: pydantic models whose fields carry a meaning, a unit, bounds and a
source. Imported by task modules and by the core, never by ``--help`` (pydantic costs time).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator


class Config(BaseModel):
    """Base of every config model: immutable, and an unknown key is an error."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        validate_default=True,
        protected_namespaces=(),
        allow_inf_nan=False,
    )

    @model_validator(mode="before")
    @classmethod
    def _keep_section_defaults(cls, given: Any) -> Any:
        """A section given in part keeps the rest of *this* field's default, not of its class."""
        if not isinstance(given, dict):
            return given
        given = dict(given)
        for name, field in cls.model_fields.items():
            if isinstance(field.default, Config) and isinstance(given.get(name), dict):
                given[name] = field.default._beneath(given[name])
        return given

    def _beneath(self, given: dict[str, Any]) -> dict[str, Any]:
        """``given`` with what this default says where it is silent."""
        return _over(self.model_dump(exclude_unset=True), given)


def _over(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """``changes`` over ``base``, section by section."""
    out = dict(base)
    for key, value in changes.items():
        nested = isinstance(value, dict) and isinstance(out.get(key), dict)
        out[key] = _over(out[key], value) if nested else value
    return out


def knob(
    default: Any = ...,
    doc: str = "",
    *,
    unit: str = "",
    source: str = "",
    ge: float | None = None,
    gt: float | None = None,
    le: float | None = None,
    lt: float | None = None,
) -> Any:
    """A config field with what a reader needs: meaning, unit, legal range, where it comes from."""
    extra: dict[str, Any] = {k: v for k, v in (("unit", unit), ("source", source)) if v}
    bounds: dict[str, Any] = {"ge": ge, "gt": gt, "le": le, "lt": lt}
    return Field(
        default,
        description=doc,
        json_schema_extra=extra or None,
        **{key: value for key, value in bounds.items() if value is not None},
    )


# -- the network ------------------------------------------------------------------------------

ConvLayer = tuple[int, int, int]  # channels, kernel, stride


def _conv_layers(*channels: int) -> tuple[ConvLayer, ...]:
    """Kernels and strides of the paper (320 samples a frame), with any widths."""
    shapes = ((10, 5), (3, 2), (3, 2), (3, 2), (3, 2), (2, 2), (2, 2))
    return tuple((c, k, s) for c, (k, s) in zip(channels, shapes, strict=True))


class Architecture(Config):
    """The sizes of a network; stored in every checkpoint. The defaults are BASE."""

    conv_layers: tuple[ConvLayer, ...] = knob(
        _conv_layers(*[512] * 7),
        "Convolutions of the feature encoder: channels, kernel, stride.",
        source="fairseq conv_feature_layers",
    )
    extractor_norm: Literal["group", "layer"] = knob(
        "group",
        "Norm of the feature encoder: over time after the first convolution, or per frame "
        "after every one.",
        source="fairseq extractor_mode default|layer_norm",
    )
    conv_bias: bool = knob(False, "Whether the convolutions have a bias.", source="fairseq")
    width: int = knob(768, "Width of the context network.", ge=8, source="paper §4.2")
    layers: int = knob(12, "Transformer blocks.", ge=1, source="paper §4.2")
    heads: int = knob(12, "Attention heads.", ge=1, source="fairseq (the paper's text says 8)")
    ffn_width: int = knob(3072, "Width inside the feed-forward layers.", ge=8, source="paper §4.2")
    norm_first: bool = knob(
        False, "Pre-LN instead of post-LN blocks.", source="fairseq layer_norm_first"
    )
    position_kernel: int = knob(
        128, "Taps of the positional convolution.", unit="frames", ge=1, source="paper §4.2"
    )
    position_groups: int = knob(
        16, "Groups of the positional convolution.", ge=1, source="paper §4.2"
    )
    codebook_groups: int = knob(2, "Groups of the quantizer, G.", ge=1, source="paper §4.2")
    codebook_entries: int = knob(
        320, "Entries in each group of the quantizer, V.", ge=2, source="paper §4.2"
    )
    final_width: int = knob(
        256,
        "Width of the codewords and of the space in which they are compared.",
        ge=2,
        source="fairseq final_dim",
    )
    normalize: bool = knob(
        False,
        "Bring every utterance to zero mean and unit variance first.",
        source="fairseq normalize: false with group norm, true with layer norm",
    )

    @model_validator(mode="after")
    def _divisible(self) -> Self:
        for key, parts in (("heads", self.heads), ("position_groups", self.position_groups)):
            if self.width % parts:
                raise ValueError(f"width {self.width} cannot be divided into {parts} {key}")
        if self.final_width % self.codebook_groups:
            raise ValueError(
                f"final_width {self.final_width} cannot be divided into "
                f"{self.codebook_groups} codebook_groups"
            )
        return self


_LARGE: dict[str, Any] = {
    "width": 1024,
    "layers": 24,
    "heads": 16,
    "ffn_width": 4096,
    "final_width": 768,
}
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "base": {},
    "large": _LARGE,
    "large-lv60k": {
        **_LARGE,
        "extractor_norm": "layer",
        "conv_bias": True,
        "norm_first": True,
        "normalize": True,
    },
    # For CPUs: narrow early convolutions, where most of the time goes. The bias keeps the latents
    # of digital silence away from zero, where LayerNorm would blow them up (docs/small.md).
    "small": {
        "conv_bias": True,
        "norm_first": True,
        "conv_layers": _conv_layers(32, 64, 64, 96, 128, 128, 128),
        "width": 192,
        "layers": 4,
        "heads": 4,
        "ffn_width": 768,
        "position_kernel": 32,
        "position_groups": 16,
        "codebook_entries": 64,
        "final_width": 96,
    },
}


class ModelConfig(Architecture):
    """Which network: a named architecture, and what to change of it."""

    architecture: Literal["base", "large", "large-lv60k", "small"] = knob(
        "base",
        "The named architecture that all other sizes start from.",
        source="paper §4.2",
    )
    init: Path | None = knob(
        None, "Checkpoint to start from; the architecture is then the checkpoint's."
    )

    @model_validator(mode="before")
    @classmethod
    def _start_from_name(cls, given: Any) -> Any:
        if isinstance(given, dict):
            return {**ARCHITECTURES.get(str(given.get("architecture", "base")), {}), **given}
        return given

    def sizes(self) -> Architecture:
        """The architecture alone, as a checkpoint stores it."""
        return Architecture(**self.model_dump(include=set(Architecture.model_fields)))


class Dropouts(Config):
    """Where activations, layers or gradients are dropped in training."""

    hidden: float = knob(0.0, "After attention and feed-forward.", ge=0, lt=1, source="dropout")
    attention: float = knob(0.0, "Of attention weights.", ge=0, lt=1, source="attention_dropout")
    activation: float = knob(
        0.0, "Inside the feed-forward layers.", ge=0, lt=1, source="activation_dropout"
    )
    input: float = knob(0.0, "Of the projected latents.", ge=0, lt=1, source="dropout_input")
    features: float = knob(
        0.0, "Of the latents that the quantizer sees.", ge=0, lt=1, source="dropout_features"
    )
    layer_drop: float = knob(
        0.0, "Chance to skip a Transformer block.", ge=0, lt=1, source="encoder_layerdrop"
    )
    final: float = knob(0.0, "Before the CTC head.", ge=0, lt=1, source="final_dropout")


# -- sections that several tasks read ---------------------------------------------------------


class DataConfig(Config):
    """Where the audio is. A split is a list of manifests (``.jsonl``) or of parts of ``root``.

    A relative manifest is looked for under ``root``, then in the current directory.
    """

    root: Path | None = knob(None, "Folder that the parts of the splits lie in.")
    corpus: Literal["auto", "librispeech", "tsv", "folder"] = knob(
        "auto", "Layout of the corpus, for building manifests."
    )
    train: tuple[str, ...] = knob((), "Training split: manifests (.jsonl), or parts of root.")
    valid: tuple[str, ...] = knob((), "Validation split: manifests (.jsonl), or parts of root.")
    test: tuple[str, ...] = knob((), "Test split: manifests (.jsonl), or parts of root.")
    manifests: Path = knob(Path("run:manifest"), "Folder for the manifests built from parts.")
    hours: float | None = knob(
        None,
        "Use only this much of the training split: always the same random part of it.",
        unit="h",
        gt=0,
    )
    jobs: int = knob(2, "Processes that scan audio when a manifest is built.", ge=1)


class TextConfig(Config):
    """How transcripts become tokens."""

    case: Literal["upper", "lower", "keep"] = knob("upper", "Case that transcripts are brought to.")
    tokens: Literal["letters", "from-text", "sentencepiece", "checkpoint"] = knob(
        "letters",
        "Units: fairseq's 28 English letters, the letters of the training text, SentencePiece, or "
        "those of model.init.",
    )
    sentencepiece: Path | None = knob(None, "SentencePiece model, for tokens: sentencepiece.")


class MaskConfig(Config):
    """Which frames (and channels) are hidden from the context network."""

    probability: float = knob(
        0.65,
        "Chance that a frame starts a span, times length.",
        ge=0,
        le=1,
        source="fairseq mask_prob; p·M of paper §4.2",
    )
    length: int = knob(10, "Length of a span.", unit="frames", ge=1, source="paper §4.2, M")
    channel_probability: float = knob(
        0.0, "The same for channels.", ge=0, le=1, source="fairseq mask_channel_prob"
    )
    channel_length: int = knob(
        64, "Length of a channel span.", unit="channels", ge=1, source="fairseq recipes"
    )


class ObjectiveConfig(Config):
    """The loss of pre-training; the defaults are BASE's."""

    negatives: int = knob(100, "Distractors per masked frame.", ge=1, source="paper §4.2, K")
    logit_temperature: float = knob(
        0.1, "Divisor of the cosine similarities.", gt=0, source="paper §4.2, κ"
    )
    gumbel: tuple[float, float, float] = knob(
        (2.0, 0.5, 0.999995),
        "Gumbel temperature: start, floor, factor per update.",
        source="fairseq latent_temp",
    )
    diversity_weight: float = knob(
        0.1, "Weight of the diversity loss.", ge=0, source="paper §4.2, α"
    )
    penalty_weight: float = knob(
        10.0, "Weight of the feature penalty.", ge=0, source="fairseq loss_weights"
    )
    feature_gradient: float = knob(
        0.1,
        "Factor on the gradient that reaches the feature encoder; 0 freezes it.",
        ge=0,
        source="fairseq feature_grad_mult",
    )


class OptimConfig(Config):
    """AdamW and its schedule."""

    lr: float = knob(5e-4, "Peak learning rate.", gt=0, source="paper §4.2")
    betas: tuple[float, float] = knob((0.9, 0.98), "Adam's decay rates.", source="fairseq recipes")
    eps: float = knob(1e-6, "Adam's epsilon.", gt=0, source="fairseq recipes")
    weight_decay: float = knob(
        0.01, "Decoupled decay, of all parameters as in fairseq.", ge=0, source="fairseq recipes"
    )
    clip: float = knob(0.0, "Largest gradient norm; 0 is off.", ge=0, source="fairseq clip_norm")
    schedule: Literal["polynomial", "tri-stage", "constant"] = knob(
        "polynomial", "Shape of the learning rate.", source="fairseq"
    )
    warmup: float = knob(
        0.08, "Share of the updates that the rate rises in.", ge=0, le=1, source="paper §4.2"
    )
    hold: float = knob(
        0.4,
        "Share of the updates at the peak (tri-stage).",
        ge=0,
        le=1,
        source="fairseq",
    )
    floor: float = knob(
        0.05,
        "Last rate as a share of the peak (tri-stage).",
        gt=0,
        le=1,
        source="fairseq",
    )


class GuardConfig(Config):
    """When updates are skipped and undone, and when alarms ring."""

    spike_factor: float = knob(
        10.0,
        "An update is skipped when its gradient norm is over this many times the usual one, an "
        "average over the last 100 or so that were not skipped; 0 is off.",
        ge=0,
    )
    spike_warmup: int = knob(100, "Updates that are learned from before spikes are judged.", ge=1)
    patience: int = knob(
        20, "Updates skipped in a row, after which the weights go back to a checkpoint.", ge=1
    )
    rollbacks: int = knob(3, "How often they may go back before the run ends.", ge=0)
    collapse: float = knob(
        1.5, "Codewords in use per group of the quantizer, below which it has collapsed.", ge=1
    )
    alarms_after: float = knob(
        0.25,
        "Share of the updates (20,000 at most) after which a loss at chance and empty transcripts "
        "are alarming.",
        ge=0,
        le=1,
    )
    bad_share: float = knob(
        0.01, "Share of the utterances met that may be unreadable; nine always may.", ge=0, le=1
    )


class LoopConfig(Config):
    """How long and in what portions a training task runs."""

    updates: int = knob(400_000, "Optimizer updates.", ge=1)
    bin_seconds: float = knob(
        87.5,
        "Audio in one micro-batch, padding included.",
        unit="s",
        gt=0,
        source="fairseq max_tokens / 16000",
    )
    bins: int = knob(
        64,
        "Micro-batches in one update, spread over the processes; 0 asks batch_hours.",
        ge=0,
        source="fairseq GPUs × update_freq",
    )
    batch_hours: float | None = knob(
        None,
        "Audio in one update, instead of bins: a round number of micro-batches that comes near it.",
        unit="h",
        gt=0,
        source="paper §4.2: 1.6 h (BASE), 2.7 h (LARGE)",
    )
    min_seconds: float = knob(0.5, "Shorter utterances are left out.", unit="s", ge=0.025)
    max_seconds: float = knob(
        15.625,
        "Longer utterances are cropped (pre-training) or left out (CTC).",
        unit="s",
        gt=0,
        source="fairseq max_sample_size / 16000",
    )
    precision: Literal["float32", "bf16"] = knob(
        "float32", "Arithmetic of the forward and backward pass; weights stay float32."
    )
    device: str = knob("auto", "auto, cpu or cuda.")
    seed: int = knob(1, "Seed of everything random.", ge=0)
    workers: int = knob(0, "Loader processes; 0 loads in the main process.", ge=0)
    cache_megabytes: int = knob(
        1024, "Decoded audio that each loading process keeps in memory.", unit="MB", ge=0
    )
    log_every: int = knob(50, "Updates between lines of metrics.", ge=1)
    valid_every: int = knob(1000, "Updates between validations.", ge=1)
    save_every: int = knob(1000, "Updates between checkpoints.", ge=1)
    keep: int = knob(2, "Newest checkpoints that are kept.", ge=2)
    keep_best: int = knob(1, "Checkpoints with the best validation that are kept.", ge=1)
    milestone_every: int = knob(
        0, "Updates between checkpoints that are kept for ever; 0 keeps none.", ge=0
    )
    async_save: bool = knob(True, "Write checkpoints in a thread, while the training goes on.")
    bad_files: Literal["replace", "stop"] = knob(
        "replace",
        "What to do about audio that cannot be read in training: let another utterance stand in "
        "for it, or stop.",
    )
    guard: GuardConfig = knob(GuardConfig(), "What is skipped, undone and warned of.")
    tensorboard: bool = knob(
        False, "Write events for TensorBoard, which w2vtool[tensorboard] installs."
    )

    @model_validator(mode="before")
    @classmethod
    def _hours_alone(cls, given: Any) -> Any:
        """``batch_hours`` alone means no number of bins, not the default one."""
        if isinstance(given, dict) and given.get("batch_hours") is not None:
            return {"bins": 0, **given}
        return given

    @model_validator(mode="after")
    def _one_size(self) -> Self:
        if bool(self.bins) == bool(self.batch_hours):
            raise ValueError(
                "one of bins and batch_hours says how large an update is, the other is 0 or null; "
                f"bins is {self.bins}, batch_hours {self.batch_hours or 'null'}"
            )
        return self

    def _beneath(self, given: dict[str, Any]) -> dict[str, Any]:
        merged = super()._beneath(given)
        if given.get("batch_hours") is not None and "bins" not in given:
            merged["bins"] = 0  # a task's own default
        return merged
