"""Fine-tune a pre-trained model with CTC on transcribed audio, or train one from scratch.

Goes in: audio with transcripts, and a checkpoint (``model.init``). Goes out: a run folder with
checkpoints that hold the vocabulary; validation counts letter and word errors of the greedy text.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from w2vtool.architecture import Dropouts, ModelConfig
from w2vtool.schema import (
    Config,
    DataConfig,
    LoopConfig,
    MaskConfig,
    OptimConfig,
    TextConfig,
    knob,
)
from w2vtool.task import Task

if TYPE_CHECKING:
    from w2vtool.run import Run


class FinetuneConfig(Config):
    """Audio, text, network and loop; the defaults are fairseq's base_100h."""

    data: DataConfig = knob(DataConfig(), "The audio.")
    text: TextConfig = knob(TextConfig(), "How transcripts become tokens.")
    model: ModelConfig = knob(ModelConfig(), "The network; init is the pre-trained checkpoint.")
    dropouts: Dropouts = knob(
        Dropouts(activation=0.1, layer_drop=0.1), "Regularisation.", source="fairseq base_100h.yaml"
    )
    mask: MaskConfig = knob(
        MaskConfig(probability=0.65, channel_probability=0.5),
        "Frames and channels hidden in training.",
        source="fairseq base_100h.yaml",
    )
    fresh_head: bool = knob(
        False, "Learn a new head, also where model.init is a CTC model that has one."
    )
    freeze_updates: int = knob(
        0,
        "Updates in which only the head learns.",
        ge=0,
        source="fairseq freeze_finetune_updates",
    )
    feature_gradient: float = knob(
        0.0,
        "Factor on the gradient that reaches the feature encoder; 0 freezes it, as fairseq does.",
        ge=0,
    )
    blank_bias: float = knob(
        0.0,
        "Bias that the blank of a fresh head starts with. fairseq starts with 0; 3 spares small "
        "models most of the plateau in which they learn to say nothing.",
        unit="nats",
    )
    optim: OptimConfig = knob(
        OptimConfig(lr=3e-5, eps=1e-8, weight_decay=0.0, schedule="tri-stage", warmup=0.1),
        "Optimizer and schedule.",
        source="fairseq base_100h.yaml",
    )
    loop: LoopConfig = knob(
        LoopConfig(updates=80_000, bin_seconds=200.0, bins=8, max_seconds=40.0),
        "Length and portions.",
        source="fairseq base_100h.yaml",
    )


def finetune_ctc(config: FinetuneConfig, run: Run) -> dict[str, Any]:
    """Join data, tokens, model and objective, and train."""
    from dataclasses import asdict
    from functools import partial

    from w2vtool import labels, training
    from w2vtool.batches import ctc_batch
    from w2vtool.objectives import Ctc
    from w2vtool.text import Rules

    text, rules = config.text, Rules.of(config.text)
    with training.start(config.loop, run) as place:
        opened = training.manifests(config.data, place, rules=rules, run=run)
        run.say(f"text.rules: {rules}")
        spelled = {name: labels.spell(found, rules, run.say) for name, found in opened.items()}
        tokens = training.tokens(text, spelled["train"], config.model.init)
        start = training.initial(
            config.model, "ctc", tokens=tokens, rules=rules, fresh_head=config.fresh_head
        )
        sizes = start.spec.architecture
        manifests = {
            name: labels.fit(found, tokens, sizes, text, run.say) for name, found in spelled.items()
        }
        run.note(text_rules=asdict(rules))
        model = training.build(
            start, config.dropouts, config.loop.seed, blank_bias=config.blank_bias
        )
        unknown = text.unknown == "keep-as-unk"
        batch = partial(ctc_batch, architecture=sizes, tokens=tokens, unknown=unknown)
        return training.fit(
            run,
            place,
            model=model,
            start=start,
            objective=Ctc(
                tokens,
                manifests.get("valid", manifests["train"]),
                rules.case,
                config.freeze_updates,
                config.feature_gradient,
                config.dropouts.layer_drop,
            ),
            splits={
                name: training.split(
                    manifest,
                    config.loop,
                    partial(batch, mask=config.mask if name == "train" else None),
                    crop=False,
                )
                for name, manifest in manifests.items()
            },
            loop=config.loop,
            optim=config.optim,
            best_metric="wer",
        )


TASK = Task(
    FinetuneConfig,
    finetune_ctc,
    flags={
        "--init": "model.init",
        "--updates": "loop.updates",
        "--workers": "loop.workers",
        "--device": "loop.device",
        "--precision": "loop.precision",
    },
    example="w2vtool finetune-ctc recipes/librispeech.yaml --variant 100h "
    "data.root=/corpora/LibriSpeech --init runs/librispeech/pretrain",
)
