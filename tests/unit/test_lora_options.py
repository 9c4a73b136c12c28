"""LoRA's options, what it needs, what it is refused with, and its weights merged."""

from __future__ import annotations

import json
import re
import sys
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from support.checkpoints import write_checkpoint
from support.huggingface import SIZES, write_model
from torch import nn
from torch.distributed import checkpoint as dcp

from domain_pretrain.adapt.lora import SAVED, Lora
from domain_pretrain.checkpoints.arguments import read_saved
from domain_pretrain.config import DomainConfig
from domain_pretrain.errors import ConfigError, LocalError, UnsupportedError
from domain_pretrain.evaluate.above_base import AboveBase
from domain_pretrain.hosts import peft
from domain_pretrain.hosts.adapters import Adapters, refusals, refuse_adapters
from domain_pretrain.hosts.bridge import BridgeDomains
from domain_pretrain.hosts.peft import find_peft
from domain_pretrain.huggingface import torch_dist
from domain_pretrain.huggingface.adapters import Adapter, saved_lora
from domain_pretrain.huggingface.exporting import export_model
from domain_pretrain.huggingface.families import Row, names, rows
from domain_pretrain.huggingface.flags import model_of
from domain_pretrain.huggingface.found import find_checkpoint
from domain_pretrain.huggingface.importing import import_model
from domain_pretrain.records.evaluated import Evaluated
from domain_pretrain.records.samples import Samples
from domain_pretrain.records.score import difference
from domain_pretrain.report.compare import Mark, compare
from domain_pretrain.stats import SCALE, Column
from domain_pretrain.yaml_file import read_yaml

load_file = pytest.importorskip("safetensors.torch").load_file
ROOT = Path(__file__).parents[2]
OF_GPT = [
    "decoder.layers.0.self_attention.linear_qkv",
    "decoder.layers.0.self_attention.linear_proj",
    "decoder.layers.0.mlp.linear_fc1",
    "decoder.layers.0.mlp.linear_fc2",
]
OF_EXPERTS = [
    "decoder.layers.1.mlp.experts.local_experts.3.linear_fc1",
    "decoder.layers.1.mlp.experts.linear_fc2",
]
OTHERS = ["decoder.layers.1.mlp.router", "decoder.layers.1.mlp.shared_experts.linear_fc1"]


def matched(options: Lora) -> list[str]:
    """As megatron.bridge.peft matches names: ``*`` is anything."""
    found = [p.replace(".", r"\.").replace("*", ".*") for p in options.patterns()]
    names = [*OF_GPT, *OF_EXPERTS, *OTHERS]
    return [name for name in names if any(re.fullmatch(one, name) for one in found)]


def test_which_layers() -> None:
    assert matched(Lora()) == OF_GPT
    assert matched(Lora(experts=True)) == [*OF_GPT, *OF_EXPERTS]
    assert matched(Lora(targets=("linear_fc1", "linear_qkv"))) == [OF_GPT[0], OF_GPT[2]]


@pytest.mark.parametrize(
    "given",
    [
        {"rank": 0},
        {"alpha": 0},
        {"dropout": 1},
        {"targets": []},
        {"targets": ["q_proj"]},
        {"alfa": 1},
    ],
)
def test_options_that_cannot_be(given: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Lora.model_validate(given)


def test_what_a_checkpoint_says_of_its_adapters() -> None:
    """Plain data, which reads back, and nothing that may change in a run that goes on."""
    own = Lora(rank=4, alpha=2, targets=("linear_fc2", "linear_qkv"), dropout=0.1)
    saved = saved_lora({SAVED: own.saved()})
    assert saved is not None and saved.saved() == own.saved() and saved.scale == 0.5
    assert Lora(rank=4, alpha=2, targets=("linear_qkv", "linear_fc2")).saved() == own.saved()
    assert saved_lora({}) is None


def test_the_preset() -> None:
    lora = DomainConfig.model_validate(
        read_yaml(ROOT / "configs" / "recipes" / "lora.yaml")
    ).adapt.lora
    assert lora is not None and (lora.rank, lora.scale) == (256, 2.0)


def test_what_is_missing_is_told_with_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    with pytest.raises(ConfigError, match=r"pip install --no-deps megatron-bridge==0\.6\.2"):
        find_peft()
    package = tmp_path / "megatron" / "bridge"
    (package / "peft").mkdir(parents=True)
    (package / "peft" / "lora.py").touch()
    info = package / "package_info.py"
    info.write_text("MAJOR = 0\nMINOR = 5\nPATCH = 1\n")
    with pytest.raises(ConfigError, match=r"0\.6 or newer, and .* is 0\.5\.1"):
        find_peft()
    info.write_text("MAJOR = 0\nMINOR = 7\nPATCH = 0\n")
    assert find_peft() == package
    assert "megatron.bridge" not in sys.modules


@pytest.mark.parametrize(
    ("options", "flags"),
    [
        (Lora(experts=True), {"tensor_model_parallel_size": 2}),
        (Lora(experts=True), {"expert_tensor_parallel_size": 2}),
        (Lora(), {"cuda_graph_impl": "local"}),
        (Lora(), {"enable_cuda_graph": True}),
        (Lora(), {"use_megatron_fsdp": True}),
        (Lora(), {"ckpt_format": "fsdp_dtensor"}),
        (Lora(), {"defer_embedding_wgrad_compute": True}),
    ],
)
def test_refusals(options: Lora, flags: dict[str, object]) -> None:
    args = Namespace(ckpt_format="torch_dist", cuda_graph_impl="none")
    assert not any(one.applies(args) for one in refusals(options, compares=True))
    vars(args).update(flags)
    assert any(one.applies(args) for one in refusals(options, compares=True))


def test_graphs_are_no_matter_where_nothing_is_compared() -> None:
    args = Namespace(cuda_graph_impl="local", tensor_model_parallel_size=2)
    assert not any(one.applies(args) for one in refusals(Lora(), compares=False))


def test_hosts_that_are_too_old_or_other_ones(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match=r"0\.18 or newer.*this is 0\.17\.1"):
        Adapters(Lora(), Namespace(), "0.17.1")
    config = tmp_path / "config.yaml"
    config.write_text("adapt: {lora: {}}")
    with pytest.raises(UnsupportedError, match="Megatron-Bridge has the same LoRA itself"):
        BridgeDomains(config)


def test_a_run_without_lora_refuses_adapters() -> None:
    refuse_adapters({"args": Namespace()}, "base")
    refuse_adapters({}, "base")
    with pytest.raises(ConfigError, match=r"run is of a run with adapt\.lora"):
        refuse_adapters({"args": Namespace(**{SAVED: Lora().saved()})}, "run")


# Above the base.


def samples(**domains: list[tuple[float, float]]) -> Samples:
    """Of each domain: Σ loss in nats and tokens of each sample."""
    rows = np.zeros((sum(map(len, domains.values())) + 1, len(Column)), dtype=np.int64)
    every = [one for own in domains.values() for one in own]
    for row, (loss_sum, tokens) in zip(rows, every, strict=False):
        row[Column.LOSS] = int(loss_sum * SCALE[Column.LOSS])
        row[Column.TOKENS] = int(tokens * SCALE[Column.TOKENS])
    of = tuple(at for at, own in enumerate(domains.values()) for _ in own)
    return Samples(tuple(domains), of, rows)


OF_BASE = samples(general=[(5.0, 4), (15.0, 6)], finance=[(30.0, 10)])


def test_above_the_base() -> None:
    above = AboveBase(4)
    assert not above.known and above.state_dict() == {}
    above.take(OF_BASE)
    later = samples(general=[(8.0, 4), (17.0, 6)], finance=[(15.0, 10)], new=[(1.0, 1)])
    found = above.scores(later)
    assert [(one.domain, one.mean) for one in found] == [("general", 0.5), ("finance", -1.5)]
    assert [one.count for one in found] == [10, 10]  # tokens
    resumed = AboveBase(4, json.loads(json.dumps(above.state_dict())))
    assert resumed.scores(samples(general=[(8.0, 4), (17.0, 6)])) == found[:1]
    assert not AboveBase(8, above.state_dict()).known  # of other samples


@pytest.mark.parametrize(
    "other",
    [
        [(8.0, 4), (17.0, 7)],
        [(8.0, 5), (17.0, 5)],
        [(25.0, 10)],
        [(8.0, 4), (17.0, 6), (0.0, 0)],
    ],
)
def test_of_other_samples_nothing_is_told(other: list[tuple[float, float]]) -> None:
    above = AboveBase(4)
    above.take(OF_BASE)
    assert above.scores(samples(general=other)) == () and not above.known


def test_above_the_base_has_a_paired_error() -> None:
    """Samples of very different losses, each of them a little above: the report can judge it."""
    counts = [3.0, 5.0, 4.0, 0.0, 6.0, 2.5]  # a mask may be fractional
    old = [3.0, 25.0, 8.0, 0.0, 12.0, 10.0]
    rises = [0.31, 0.48, 0.42, 0.0, 0.6, 0.24]
    now = [loss + rise for loss, rise in zip(old, rises, strict=True)]
    base, later = (samples(code=list(zip(one, counts, strict=True))) for one in (old, now))
    above = AboveBase(6)
    above.take(base)
    (start,), (end,) = above.scores(base), above.scores(later)
    one, two = base.score("code"), later.score("code")
    assert one is not None and two is not None and one.error is not None
    assert (end.mean, end.error) == pytest.approx(difference(one, two), rel=1e-4)
    n, r = len(rises), sum(rises) / sum(counts)
    residuals = np.array(rises) - r * np.array(counts)
    assert end.error == pytest.approx(np.sqrt(n * residuals.var(ddof=1)) / sum(counts), rel=1e-4)
    assert end.error < 0.05 * one.error
    models = [(str(at), Evaluated(at, at, (score,))) for at, score in ((0, start), (9, end))]
    assert compare(models).of(Mark.WORSE) == {"code": ["above-base"]}


def test_a_base_of_a_checkpoint_without_parts_has_no_error() -> None:
    old = {"samples": 4, "base": {"general": [20.0, 10.0], "finance": [30.0, 10.0]}}
    above = AboveBase(4, old)
    later = samples(general=[(8.0, 4), (17.0, 6)], finance=[(15.0, 5), (0.0, 5)])
    found = above.scores(later)
    assert [(one.domain, one.mean) for one in found] == [("general", 0.5), ("finance", -1.5)]
    assert all(one.error is None for one in found)
    assert AboveBase(4, above.state_dict()).scores(later) == found
    assert above.scores(samples(general=[(8.0, 4), (17.0, 7)])) == () and not above.known


# Merged.


def test_merged_weights() -> None:
    """Of a fused layer, whose groups follow each other in W and in B alike."""
    parts = (("q", (8, 6)), ("k", (4, 6)), ("v", (4, 6)))
    row = Row(("self_attention.linear_qkv.weight",), parts, groups=2, cut=0)
    adapter = Adapter.of(row, Lora(rank=3, alpha=6))
    assert adapter is not None and adapter.a.shape == (3, 6) and adapter.b.shape == (16, 3)
    torch.manual_seed(0)
    w, a, b = torch.randn(16, 6), torch.randn(3, 6), torch.randn(16, 3)
    merged = adapter.merge(w, lambda one: a if one is adapter.a else b)
    torch.testing.assert_close(merged, w + 2 * b @ a)
    own = zip(row.unpack(w), adapter.b.unpack(b), row.unpack(merged), strict=True)
    for weight, of_b, found in own:
        torch.testing.assert_close(found, weight + 2 * of_b @ a)


@pytest.mark.parametrize(
    "name",
    [
        "self_attention.linear_qkv.bias",
        "self_attention.linear_qkv.layer_norm_weight",
        "mlp.router.weight",
        "mlp.experts.experts.linear_fc1.weight",
        "self_attention.linear_proj.weight",
    ],
)
def test_rows_without_adapters(name: str) -> None:
    row = Row((name,), (("x", (4, 4)),), cut=0)
    assert Adapter.of(row, Lora(targets=("linear_qkv", "linear_fc1"))) is None


# What is loaded.


class Layer(nn.Module):
    """As megatron.bridge.peft wraps one; it saves the tensors of ``to_wrap`` as its own."""

    def __init__(self) -> None:
        super().__init__()
        self.to_wrap, self.adapter = nn.Linear(2, 2), nn.Linear(2, 2, bias=False)
        self._register_load_state_dict_pre_hook(peft._to_wrapped)


@pytest.fixture
def adapters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Adapters:
    """Of a run that begins with a base, in a model of one layer."""
    monkeypatch.setattr(peft, "find_peft", lambda: tmp_path)
    write_checkpoint(tmp_path / "base", "iter_0000002")
    found = Adapters(Lora(), Namespace(load=str(tmp_path / "base"), finetune=True), "0.19.2")
    found._layers = 1
    return found


BASE = {"linear.weight": torch.ones(2, 2), "linear.bias": torch.ones(2)}


@pytest.mark.parametrize("adapted", [False, True])
def test_a_layer_takes_the_tensors_that_it_saved(adapted: bool, adapters: Adapters) -> None:
    """Of a base and of a run with adapters, by a strict load: nothing else is excused."""
    model = nn.ModuleDict({"linear": Layer()})
    model.register_load_state_dict_post_hook(adapters._loaded)
    saved = Namespace(**({SAVED: Lora().saved()} if adapted else {}))
    adapters.look_into({"args": saved, "iteration": 2}, "base")
    own = {"linear.adapter.weight": torch.zeros(2, 2)} if adapted else {}
    model.load_state_dict({**BASE, **own})
    layer = model["linear"]
    assert torch.equal(layer.to_wrap.weight, BASE["linear.weight"])
    assert torch.equal(layer.adapter.weight, torch.zeros(2, 2)) is adapted


@pytest.mark.parametrize(
    ("gone", "adapted"),
    [("linear.bias", False), ("linear.bias", True), ("linear.adapter.weight", True)],
)
def test_what_is_missing_is_named_and_no_exception_that_a_host_catches(
    gone: str, adapted: bool, adapters: Adapters, capsys: pytest.CaptureFixture[str]
) -> None:
    model = nn.ModuleDict({"linear": Layer()})
    model.register_load_state_dict_post_hook(adapters._loaded)
    saved = Namespace(**({SAVED: Lora().saved()} if adapted else {}))
    adapters.look_into({"args": saved, "iteration": 2}, "base")
    state = {**BASE, "linear.adapter.weight": torch.zeros(2, 2)}
    del state[gone]
    for strict in (True, False):
        with pytest.raises(SystemExit):
            model.load_state_dict(dict(state), strict=strict)
        assert f"base lacks {gone}, which adapt.lora keeps" in capsys.readouterr().err


def test_of_a_base_the_adapters_are_not_asked_for(adapters: Adapters, tmp_path: Path) -> None:
    """In a format that is cut for any layout; what its index does not have is named."""
    folder = tmp_path / "iter_0000002"
    dcp.save({"layers.weight": torch.ones(2)}, checkpoint_id=folder, no_dist=True)
    asked = {
        "0.weight": Namespace(key="layers.weight"),
        "0.adapter.linear_in.weight": Namespace(key="layers.adapter.linear_in.weight"),
        "0._extra_state": Namespace(key="layers._extra_state"),
    }
    adapters.look_into({"args": Namespace(), "iteration": 2}, str(folder))
    wanted = {"model": dict(asked), "args": None}
    adapters.before_read(wanted)
    assert list(wanted["model"]) == ["0.weight", "0._extra_state"]
    wanted["model"]["0.bias"] = Namespace(key="layers.bias")
    with pytest.raises(LocalError, match=r"lacks layers\.bias, which"):
        adapters.before_read(wanted)
    # A run's own checkpoint has them, or is not whole.
    adapters.look_into({"args": Namespace(**{SAVED: Lora().saved()})}, str(folder))
    with pytest.raises(LocalError, match=r"lacks layers\.adapter\.linear_in\.weight, which"):
        adapters.before_read({"model": dict(asked)})


def test_a_base_is_nothing_to_go_on_from(adapters: Adapters) -> None:
    adapters._args.finetune = False
    with pytest.raises(ConfigError, match="no checkpoint of this run to go on from"):
        adapters.look_into({"args": Namespace(), "iteration": 2}, "base")
    adapters.look_into({"args": Namespace(), "iteration": 0}, "base")  # a release


# Exported.

TP = 2


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("llama")
    write_model(folder / "model", "llama")
    import_model(folder / "model", folder / "base")
    return folder


def cut(row: Row, whole: torch.Tensor, rank: int) -> torch.Tensor:
    """What a rank of TP has of a tensor: of the gate and of the other half, each its part."""
    if row.cut is None:
        return whole
    halves = whole.chunk(2) if len(row.parts) == 2 else [whole]
    return torch.cat([half.chunk(TP, row.cut)[rank] for half in halves])


@pytest.mark.parametrize("format", ["torch_dist", "torch"])
def test_adapters_are_merged_in_an_export(format: str, base: Path, tmp_path: Path) -> None:
    """From a checkpoint made by hand, as a run of TP2 saves one; against sums of each of the
    Hugging Face model's own tensors."""
    saved = read_saved(base / "base" / "release")
    options, model = Lora(rank=4, alpha=2), model_of(saved.args, SIZES["vocab_size"])
    args = {**saved.args, SAVED: options.saved(), "tensor_model_parallel_size": TP}
    checkpoint, old = tmp_path / "iter_0000001", load_file(base / "model" / "model.safetensors")
    writer = torch_dist.Writer(checkpoint, model, torch.float32) if format == "torch_dist" else None
    ranks: list[dict[str, torch.Tensor]] = [{} for _ in range(TP)]

    def write(row: Row, tensor: torch.Tensor, number: int | None) -> None:
        if writer is not None:
            writer.write(row, tensor, number)
        for rank, state in enumerate(ranks):
            prefix = "" if number is None else f"decoder.layers.{number}."
            state[prefix + row.names[0]] = cut(row, tensor, rank).clone()

    expected, torch_seed = {}, torch.Generator().manual_seed(0)
    for row, number, _ in rows(model):
        own = names(row, number)
        write(row, row.pack([old[name] for name in own]), number)
        expected |= {name: old[name] for name in own}
        adapter = Adapter.of(row, options)
        if adapter is None:
            continue
        a = torch.randn(adapter.a.shape, generator=torch_seed)
        parts = [torch.randn(shape, generator=torch_seed) for _, shape in adapter.b.parts]
        write(adapter.a, a, number)
        write(adapter.b, adapter.b.pack(parts), number)
        expected |= {n: old[n] + 0.5 * b @ a for n, b in zip(own, parts, strict=True)}
    if writer is not None:
        writer.close(args)
    for rank, state in enumerate(ranks if writer is None else ()):
        file = checkpoint / f"mp_rank_{rank:02d}" / "model_optim_rng.pt"
        file.parent.mkdir(parents=True)
        torch.save({"model": state, "args": Namespace(**args), "iteration": 1}, file)

    done = export_model(find_checkpoint(checkpoint), tmp_path / "out", base / "base")
    assert done.lora == options
    found = load_file(tmp_path / "out" / "model.safetensors")
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor)
    assert sum(not torch.equal(expected[name], old[name]) for name in old) == 2 * 7
