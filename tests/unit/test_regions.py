"""Recomputed or compiled, the network computes what it did; kernels are made once an update."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import toys
from test_trainer import LOOP, Make, Memory, build
from torch import Tensor, nn

from w2vtool import bench, bench_machine
from w2vtool.architecture import Dropouts, ModelConfig
from w2vtool.errors import ConfigError
from w2vtool.feed import BinNumbers, read
from w2vtool.model import regions
from w2vtool.model.encoder import Block, ContextNetwork, FeatureEncoder, PositionalConv
from w2vtool.model.heads import PretrainModel
from w2vtool.run import Stop
from w2vtool.schema import LoopConfig, MaskConfig, ObjectiveConfig, OptimConfig
from w2vtool.trainer import Training, train
from w2vtool.training import Place

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    # by torch.compile itself, where it looks at tensors inside of a graph
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning"),
]
DROP = Dropouts(hidden=0.2, attention=0.2, activation=0.2, input=0.1)
NONE = Dropouts()
LENGTHS = ((3, 50), (2, 40), (4, 61), (3, 33), (2, 50))
EXACT = 1e-6


class Counting:
    """A compiler that only counts: graphs run as they were traced, forward and backward."""

    def __init__(self) -> None:
        self.graphs = 0

    def __call__(self, graph: Any, inputs: list[Tensor]) -> Callable[..., Any]:
        from torch._dynamo.backends.debugging import aot_eager

        self.graphs += 1
        return aot_eager(graph, inputs)


@pytest.fixture
def backend() -> Iterator[Counting]:
    config: Any = torch._dynamo.config
    torch._dynamo.reset()
    with config.patch(recompile_limit=8, specialize_float=False):
        yield Counting()
    torch._dynamo.reset()


@pytest.fixture(params=["group", "layer"])
def context(request: pytest.FixtureRequest) -> ContextNetwork:
    return network(request.param, DROP)


def network(style: str, dropouts: Dropouts) -> ContextNetwork:
    torch.manual_seed(0)
    sizes = toys.STYLES[style].model_copy(update={"layers": 3})
    net = ContextNetwork(sizes, dropouts)
    toys.shake(net)
    return net


def step(net: ContextNetwork, rows: int, frames: int, **more: Any) -> list[Tensor]:
    """The output and all gradients, with the same dropout and input every time."""
    width = net.norm.weight.shape[0]
    generator = torch.Generator().manual_seed(frames)
    x_BTD = torch.randn(rows, frames, width, generator=generator).requires_grad_()
    net.zero_grad()
    torch.manual_seed(5)
    y_BTD = net(x_BTD, more.pop("frames_B", None), **more).x_BTD
    (y_BTD * torch.linspace(-1, 1, width)).pow(2).sum().backward()
    assert x_BTD.grad is not None
    grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in net.parameters()]
    return [y_BTD.detach(), x_BTD.grad, *(grad.clone() for grad in grads)]


def apart(found: list[Tensor], wanted: list[Tensor]) -> float:
    """The largest difference, as a share of the largest number of the tensor that it is in."""
    pairs = zip(found, wanted, strict=True)
    return max(float((a - b).abs().max() / b.abs().max().clamp(min=1e-9)) for a, b in pairs)


# -- recomputation ---------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["float32", "bf16"])
@pytest.mark.parametrize("padded", [False, True])
def test_recomputed_blocks_draw_the_same_dropout_and_give_the_same_bits(
    context: ContextNetwork, padded: bool, precision: str
) -> None:
    frames_B = torch.tensor([37, 20]) if padded else None
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        wanted = step(context, 2, 37, frames_B=frames_B, skip=[False, True, False])
        regions.recompute(context)
        found = step(context, 2, 37, frames_B=frames_B, skip=[False, True, False])
    for one, other in zip(found, wanted, strict=True):
        assert torch.equal(one, other)


def test_what_comes_after_a_recomputed_block_draws_what_it_drew(context: ContextNetwork) -> None:
    step(context, 2, 20)
    wanted = torch.rand(3)
    regions.recompute(context)
    step(context, 2, 20)
    assert torch.equal(torch.rand(3), wanted)


def kept_bytes(net: ContextNetwork) -> int:
    """Bytes that autograd keeps between forward and backward, weights and duplicates left out."""
    kept: dict[int, int] = {}
    known = {p.untyped_storage().data_ptr() for p in net.parameters()}

    def pack(x: Tensor) -> Tensor:
        storage = x.untyped_storage()
        if storage.data_ptr() not in known:
            kept[storage.data_ptr()] = storage.nbytes()
        return x

    x_BTD = torch.randn(2, 64, net.norm.weight.shape[0], requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        y_BTD = net(x_BTD, None).x_BTD
    y_BTD.sum().backward()
    return sum(kept.values())


def test_recomputing_keeps_a_fraction_of_the_bytes(context: ContextNetwork) -> None:
    def blocks() -> int:
        whole = kept_bytes(context)
        held, context.blocks = context.blocks, nn.ModuleList()
        without, context.blocks = kept_bytes(context), held
        return whole - without

    before = blocks()
    regions.recompute(context)
    assert blocks() < before / 10  # the input of each block, of some twenty tensors


def test_validation_recomputes_nothing(context: ContextNetwork, monkeypatch: Any) -> None:
    regions.recompute(context)
    monkeypatch.setattr("w2vtool.model.encoder.checkpoint", None)  # would fail when called
    with torch.no_grad():
        context.eval()(torch.randn(1, 10, context.norm.weight.shape[0]), None)


def test_a_run_that_recomputes_is_the_run_that_does_not(make: Make) -> None:
    lines, weights = [], []
    for recompute in (False, True):
        job, memory = make(str(recompute), recompute=recompute), Memory()
        train(job, memory)
        lines.append(memory.lines)
        weights.append(job.model.state_dict())
    assert lines[0] == lines[1]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


@pytest.fixture(params=["pretrain", "ctc"])
def make(request: pytest.FixtureRequest, toy_corpus: Path, tmp_path: Path) -> Make:
    return partial(build, request.param, toy_corpus, tmp_path)


@pytest.mark.parametrize("work", [regions.recompute, regions.compile_regions])
def test_a_model_without_blocks_is_refused_by_name(work: Callable[[nn.Module], None]) -> None:
    with pytest.raises(ConfigError, match=r"loop\.(recompute|compile) .* Linear has none"):
        work(nn.Linear(2, 2))


# -- compilation -----------------------------------------------------------------------------------


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("style", ["group", "layer"])
def test_one_graph_serves_all_blocks_and_lengths_and_gives_the_same(
    backend: Counting, style: str, recompute: bool
) -> None:
    net = network(style, NONE)

    def steps() -> list[list[Tensor]]:
        skips = [[False, number == 1, False] for number in range(len(LENGTHS))]
        return [step(net, *shape, skip=skip) for shape, skip in zip(LENGTHS, skips, strict=True)]

    wanted = steps()
    names = list(net.state_dict())
    regions.compile_regions(net, backend)
    if recompute:
        regions.recompute(net)
    assert all(apart(one, other) < EXACT for one, other in zip(steps(), wanted, strict=True))
    assert backend.graphs == 1
    assert bench_machine.compilations() >= 1
    assert list(net.state_dict()) == names


def test_padding_validation_and_bf16_have_graphs_of_their_own(backend: Counting) -> None:
    net, plain = network("group", NONE), network("group", NONE)
    regions.compile_regions(net, backend)
    step(net, 2, 40)
    for frames in (41, 57):
        frames_B = torch.tensor([frames, 30])
        found, wanted = (step(n, 2, frames, frames_B=frames_B) for n in (net, plain))
        assert apart(found, wanted) < EXACT
    assert backend.graphs == 2
    with torch.autocast("cpu", torch.bfloat16):
        assert apart(*(step(n, 2, 40)[:1] for n in (net, plain))) < 0.02
    assert backend.graphs == 3
    with torch.no_grad():
        x_BTD = torch.randn(2, 44, 32)
        assert apart([net.eval()(x_BTD, None).x_BTD], [plain.eval()(x_BTD, None).x_BTD]) < EXACT
    assert backend.graphs == 4


@pytest.mark.parametrize(("norm", "graphs"), [("group", 1), ("layer", 2)])
def test_a_compiled_feature_encoder_gives_the_same(
    backend: Counting, norm: str, graphs: int
) -> None:
    torch.manual_seed(0)
    encoder = FeatureEncoder(toys.STYLES[norm])
    other = copy.deepcopy(encoder)
    regions.compile_regions(nn.Sequential(network(norm, NONE), encoder), backend)
    for rows, samples in ((2, 4000), (3, 3210), (2, 5000)):
        wave_BS = torch.randn(rows, samples)
        results = []
        for net in (encoder, other):
            net.zero_grad()
            y_BTC = net(wave_BS)
            y_BTC.pow(2).sum().backward()
            results.append([y_BTC.detach(), *(p.grad for p in net.parameters())])
        assert apart(*results) < 1e-5
    assert backend.graphs == graphs  # one for each number of channels


def test_compiled_dropout_follows_the_seed_and_drops_its_share(backend: Counting) -> None:
    net = network("group", DROP)
    regions.compile_regions(net, backend)
    one, again = step(net, 2, 30), step(net, 2, 30)
    assert all(torch.equal(a, b) for a, b in zip(one, again, strict=True))
    torch.manual_seed(6)
    other = net(torch.zeros(2, 30, 32), None).x_BTD
    assert not torch.equal(other, net(torch.zeros(2, 30, 32), None).x_BTD)


def test_a_compiled_run_learns_what_the_plain_one_does(
    make: Make, backend: Counting, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled_by(backend, monkeypatch)
    results = []
    for compiled in (False, True):
        job = make(str(compiled), compile=compiled, dropouts=NONE, bin_seconds=1.3)
        results.append(train(job, Memory()))
    assert backend.graphs > 0
    assert results[1] == pytest.approx(results[0], rel=1e-3)


@pytest.mark.parametrize("kind", ["pretrain", "finetune"])
def test_many_lengths_make_few_graphs_and_bench_counts_them(
    kind: str, backend: Counting, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled_by(backend, monkeypatch)
    shapes = set()
    real_forward = ContextNetwork.forward

    def forward(self: ContextNetwork, x_BTD: Tensor, *args: Any, **more: Any) -> Any:
        shapes.add(tuple(x_BTD.shape))
        return real_forward(self, x_BTD, *args, **more)

    monkeypatch.setattr(ContextNetwork, "forward", forward)
    lengths = [0.5 + 0.02 * (i % 60) for i in range(600)]
    monkeypatch.setattr(bench, "durations", lambda *_: lengths)
    settings: dict[str, Any] = {
        "model": ModelConfig.model_validate({"architecture": "small", **toys.SIZES}),
        "dropouts": DROP,
        "mask": MaskConfig(channel_length=4),
        "optim": OptimConfig(),
        "loop": LoopConfig(
            updates=8, bins=4, bin_seconds=3.0, max_seconds=2.0, device="cpu", compile=True
        ),
    }
    if kind == "pretrain":
        settings["objective"] = ObjectiveConfig(negatives=5)
    else:
        settings["feature_gradient"] = 1.0
    where = bench.Bench(Place(torch.device("cpu"), 0, 1), Memory(), warmup=0)
    report = getattr(bench, kind)(where, **settings)
    assert report["compilations"] == backend.graphs
    # with and without padding, one row and several; and the norm of the first convolution
    assert 0 < backend.graphs <= 2 * 2 + 2 < len(shapes) / 4


def compiled_by(backend: Counting, monkeypatch: pytest.MonkeyPatch) -> None:
    real = regions.compile_regions
    monkeypatch.setattr(regions, "compile_regions", lambda model: real(model, backend))


# -- once an update --------------------------------------------------------------------------------


def gradients(job: Training, bins: int) -> dict[str, Tensor]:
    """Of the first update, before the optimizer has it."""
    found: dict[str, Tensor] = {}

    def keep(*_: Any) -> None:
        found.update(
            {n: p.grad.clone() for n, p in job.model.named_parameters() if p.grad is not None}
        )

    job.optimizer.register_step_pre_hook(keep)
    job.model.train()
    job.update(read(job.train, BinNumbers(0, 1, bins, 0, 1), job.loop), Stop())
    return found


def test_the_positional_kernel_is_made_once_an_update_and_its_gradient_is_right(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    bins, calls = 4, []
    real = torch._weight_norm

    def counting(*args: Any) -> Tensor:
        calls.append(args)
        return real(*args)

    monkeypatch.setattr(torch, "_weight_norm", counting)
    found = gradients(make("once", bins=bins), bins)
    assert len(calls) == 1
    monkeypatch.setattr(PositionalConv, "hold", PositionalConv.weight)  # holds nothing
    monkeypatch.setattr(regions.OnceAnUpdate, "settle", lambda self: None)
    real_init = regions.OnceAnUpdate.__init__

    def init(self: regions.OnceAnUpdate, model: nn.Module, *, hold: bool) -> None:
        real_init(self, model, hold=hold)
        self.leaves = [p for p in model.parameters() if p.requires_grad]

    monkeypatch.setattr(regions.OnceAnUpdate, "__init__", init)
    wanted = gradients(make("each", bins=bins), bins)
    assert len(calls) == 1 + 1 + bins
    assert found.keys() == wanted.keys()
    assert any("weight_g" in name for name in found)
    for name, value in wanted.items():
        assert float((found[name] - value).abs().max()) <= EXACT * float(value.abs().max()) + 1e-12


def test_after_an_update_that_ended_early_kernels_follow_their_parameters_again() -> None:
    model = PretrainModel(toys.TINY)
    positions = model.wav2vec2.context.positions
    with pytest.raises(ZeroDivisionError), regions.once_an_update(model):
        assert positions.weight() is positions.held
        raise ZeroDivisionError
    with torch.no_grad():
        positions.weight_g.mul_(2)
    assert torch.equal(positions.weight().norm(dim=(0, 1)), positions.weight_g.flatten()) or (
        torch.allclose(positions.weight().norm(dim=(0, 1)), positions.weight_g.flatten())
    )


def test_blocks_and_loop_agree_on_what_is_a_block() -> None:
    model = PretrainModel(toys.TINY)
    blocks = [module for module in model.modules() if isinstance(module, Block)]
    assert [b for c in regions.contexts(model, "loop.compile") for b in c.blocks] == blocks
    assert LOOP.compile is LOOP.recompute is False
