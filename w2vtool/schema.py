"""What a recipe may say: the base of all config models, and the sections that tasks share.

Goes in: nothing. Goes out: pydantic models whose fields carry a meaning, a unit, bounds and a
source. Imported by task modules and by the core, never by ``--help`` (pydantic costs time).
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator


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


def _known_corpus(name: str) -> str:
    """The name of a layout that is there, built in or plugged in; nothing is imported for it."""
    from w2vtool.errors import ConfigError
    from w2vtool.layouts import table

    if name != table.AUTO:
        try:
            table.find(name)
        except ConfigError as error:
            raise ValueError(f"{error.what}; {error.hint}") from error
    return name


CorpusName = Annotated[str, AfterValidator(_known_corpus)]


class DataConfig(Config):
    """Where the audio is. A split is a list of manifests (``.jsonl``) or of parts of ``root``.

    A relative manifest is looked for under ``root``, then in the current directory.
    """

    root: Path | None = knob(None, "Folder that the parts of the splits lie in.")
    corpus: CorpusName = knob("auto", "Layout of the corpus (docs/corpora.md), for manifests.")
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
    strict_rate: bool = knob(False, "Refuse audio that is not 16 kHz, in place of resampling it.")


class TextConfig(Config):
    """How transcripts are spelled, and become tokens."""

    case: Literal["upper", "lower", "keep"] = knob("upper", "Case that transcripts are brought to.")
    punctuation: Literal["keep", "drop"] = knob(
        "keep", "Whether punctuation and symbols stay; dashes and slashes become spaces."
    )
    apostrophes: Literal["keep", "drop", "space"] = knob(
        "keep",
        "What becomes of apostrophes inside of words: they stay, go (DONT), or become spaces (DON "
        "T). All others are punctuation.",
    )
    tokens: Literal["letters", "from-text", "file", "sentencepiece", "checkpoint"] = knob(
        "letters",
        "Units: fairseq's 28 English letters, the letters of the training text, those of a file, "
        "SentencePiece, or those of model.init.",
    )
    file: Path | None = knob(
        None,
        "Letters, for tokens: file: SYMBOL COUNT lines (dict.ltr.txt), or one symbol a line, the "
        "blank first.",
    )
    sentencepiece: Path | None = knob(None, "SentencePiece model, for tokens: sentencepiece.")
    unknown: Literal["error", "drop-rows", "keep-as-unk"] = knob(
        "error",
        "Texts with letters outside of the vocabulary: stop before training and name them all, "
        "leave their rows out, or learn <unk> for the letters.",
    )
    too_long: Literal["error", "drop"] = knob(
        "error",
        "Texts that need more CTC frames than their audio has: stop before training, or leave "
        "their rows out.",
    )


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
    quadratic_seconds: float | None = knob(
        None,
        "An utterance of s seconds counts s + s² / this in bin_seconds, so that bins of long ones "
        "hold less: where attention costs as much as all else, 150 s in BASE and LARGE. null: s.",
        unit="s",
        gt=0,
        source="lhotse quadratic_duration",
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
    compile: bool = knob(
        False, "Compile the Transformer blocks and the feature encoder: faster on GPUs."
    )
    recompute: bool = knob(
        False,
        "Compute the Transformer blocks again in the backward pass instead of keeping what they "
        "computed: less memory, about a third more time.",
    )
    shard: bool = knob(
        False,
        "Spread weights, gradients and optimizer over the processes (FSDP), for models that do not "
        "fit a GPU; alone, a process ignores it.",
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
