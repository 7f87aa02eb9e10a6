"""Pre-train wav2vec 2.0 on audio without transcripts, or go on from a checkpoint.

Goes in: audio (``data.train``). Goes out: a run folder with checkpoints, metrics and the best step.
Under torchrun the micro-batches of an update are spread over the processes. With ``--resume`` a
stopped run goes on as if it had never stopped.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from w2vtool.architecture import Dropouts, ModelConfig
from w2vtool.schema import (
    Config,
    DataConfig,
    LoopConfig,
    MaskConfig,
    ObjectiveConfig,
    OptimConfig,
    TextConfig,
    knob,
)
from w2vtool.task import Task

if TYPE_CHECKING:
    from w2vtool.run import Run


class PretrainConfig(Config):
    """Audio, network, loss and loop of pre-training; the defaults are BASE on LibriSpeech."""

    data: DataConfig = knob(DataConfig(), "The audio.")
    text: TextConfig = knob(TextConfig(), "Rules for transcripts, if a manifest is built.")
    model: ModelConfig = knob(ModelConfig(), "The network.")
    dropouts: Dropouts = knob(
        Dropouts(hidden=0.1, attention=0.1, input=0.1, features=0.1, layer_drop=0.05),
        "Regularisation.",
        source="fairseq wav2vec2_base_librispeech.yaml",
    )
    mask: MaskConfig = knob(MaskConfig(), "Which frames are to be guessed.")
    objective: ObjectiveConfig = knob(ObjectiveConfig(), "The loss.")
    optim: OptimConfig = knob(OptimConfig(), "Optimizer and schedule.")
    loop: LoopConfig = knob(LoopConfig(), "Length and portions.")


def pretrain(config: PretrainConfig, run: Run) -> dict[str, Any]:
    """Join data, model and objective, and train."""
    from functools import partial

    from w2vtool import training
    from w2vtool.batches import pretrain_batch
    from w2vtool.objectives import Contrastive
    from w2vtool.text import Rules

    with training.start(config.loop, run) as place:
        start = training.initial(config.model, "pretrain")
        model = training.build(start, config.dropouts, config.loop.seed)
        if config.objective.feature_gradient == 0:  # else weight decay would go on shrinking it
            model.get_submodule("wav2vec2.feature_encoder").requires_grad_(False)
        collate = partial(
            pretrain_batch,
            architecture=start.spec.architecture,
            mask=config.mask,
            max_seconds=config.loop.max_seconds,
        )
        manifests = training.manifests(config.data, place, rules=Rules.of(config.text), run=run)
        return training.fit(
            run,
            place,
            model=model,
            start=start,
            objective=Contrastive(config.objective, config.dropouts.layer_drop),
            splits={
                name: training.split(manifest, config.loop, collate, crop=True)
                for name, manifest in manifests.items()
            },
            loop=config.loop,
            optim=config.optim,
            best_metric="loss",
        )


TASK = Task(
    PretrainConfig,
    pretrain,
    flags={
        "--updates": "loop.updates",
        "--workers": "loop.workers",
        "--device": "loop.device",
        "--precision": "loop.precision",
    },
    example="w2vtool pretrain recipes/librispeech.yaml data.root=/corpora/LibriSpeech",
)
