"""The recipes of Muon and MuonClip: when they apply, what they refuse, and the page's tables."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from packaging.specifiers import SpecifierSet
from support.checkpoints import write_checkpoint
from support.flags import parser_of
from support.pages import text
from support.presets import preset

from domain_pretrain.adapt import muon
from domain_pretrain.adapt.muon import MUON, QK_CLIP
from domain_pretrain.adapt.recipes import RECIPES
from domain_pretrain.commands.main import main
from domain_pretrain.hosts import upstream
from domain_pretrain.hosts.base_model import tell_doubts
from domain_pretrain.refusal import Refusal

# As Megatron's args are after validation, of a run that is right.
RIGHT: dict[str, Any] = {
    "optimizer": "muon",
    "bf16": True,
    "fp16": False,
    "distributed_backend": "nccl",
    "transformer_impl": "transformer_engine",
    "use_distributed_optimizer": False,
    "use_layer_wise_distributed_optimizer": False,
    "tensor_model_parallel_size": 1,
    "context_parallel_size": 1,
    "data_parallel_size": 1,
    "muon_nesterov": True,
    "muon_coefficient_type": "quintic",
    "muon_scale_mode": "spectral",
    "muon_extra_scale_factor": 0.2,
    "muon_tp_mode": "duplicated",
    "qk_clip": True,
    "log_max_attention_logit": True,
    "qk_layernorm": False,
    "add_qkv_bias": False,
    "load": None,
    "pretrained_checkpoint": None,
}
SHARDED = {"use_layer_wise_distributed_optimizer": True}
NO_LOGITS = {"qk_clip": False, "log_max_attention_logit": False}


def args(**given: Any) -> SimpleNamespace:
    return SimpleNamespace(**{**RIGHT, **given})


def found(given: SimpleNamespace) -> list[Refusal]:
    of = [recipe for recipe in RECIPES if recipe.applies(given)]
    return [one for r in of for one in (*r.refusals, *r.doubts) if one.applies(given)]


@pytest.fixture(autouse=True)
def package(monkeypatch: pytest.MonkeyPatch) -> None:
    """Installed, be it or not."""
    monkeypatch.setattr(muon, "find_spec", lambda name: object())
    monkeypatch.setattr(muon, "version", lambda name: "0.3.0")


def test_what_is_right_is_not_doubted() -> None:
    for optimizer in ("adam", "sgd", "muon", "dist_muon"):
        given = args(optimizer=optimizer)
        assert MUON.applies(given) == ("muon" in optimizer)
        assert found(given) == []
    assert found(args(distributed_backend="gloo", **SHARDED)) == []  # a single rank
    parted = {"tensor_model_parallel_size": 2}
    assert found(args(multi_latent_attention=True, **parted)) == []
    assert found(args(qk_clip=False, **parted)) == []
    assert not QK_CLIP.applies(args(**NO_LOGITS))
    # Hosts before 0.16 have none of this.
    old = SimpleNamespace(optimizer="adam", bf16=False)
    assert not any(recipe.applies(old) for recipe in (MUON, QK_CLIP))


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"fp16": True, "bf16": False}, "use --bf16"),
        ({**SHARDED, "distributed_backend": "gloo", "data_parallel_size": 2}, "which gloo cannot"),
        (
            {**SHARDED, "distributed_backend": "gloo", "context_parallel_size": 2},
            "which gloo cannot",
        ),
        ({**SHARDED, "bf16": False, **NO_LOGITS}, "give --bf16, or leave the flag out"),
        ({"optimizer": "dist_muon", "bf16": False, **NO_LOGITS}, "give --bf16, or leave"),
        ({"muon_extra_scale_factor": 1.0}, "give 0.2"),
        (
            {"muon_tp_mode": "blockwise", "tensor_model_parallel_size": 2, **NO_LOGITS},
            "give duplicated",
        ),
        ({"tensor_model_parallel_size": 2}, "use --tensor-model-parallel-size 1"),
        ({"bf16": False}, "where there is none; give --bf16"),
        ({"bf16": False, "qk_clip": False}, "where there is none; give --bf16"),
        ({"transformer_impl": "local"}, "leave --transformer-impl local out"),
        ({"optimizer": "adam", "use_distributed_optimizer": True}, "--optimizer muon"),
        ({"attention_output_gate": True}, "leave one out"),
        ({"qk_layernorm": True}, "leave --qk-clip out"),
        ({"add_qkv_bias": True}, "--disable-bias-linear"),
    ],
)
def test_what_is_wrong_is_named_with_the_fix(given: dict[str, Any], says: str) -> None:
    (one,) = found(args(**given))
    assert says in one.why


def test_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    (one,) = found(args(optimizer="adaptive_muon"))
    assert "v0.2.0" in one.why
    assert found(args(optimizer="adaptive_muon", muon_use_syrk=False)) == []
    old = args()
    del old.muon_coefficient_type, old.muon_nesterov
    old.muon_use_nesterov = True
    (one,) = found(old)
    assert "v0.1.0" in one.why
    monkeypatch.setattr(muon, "version", lambda name: "0.1.0")
    assert found(old) == found(args(optimizer="adaptive_muon")) == []
    monkeypatch.setattr(muon, "find_spec", lambda name: None)
    (one,) = found(args())
    assert "pip install emerging-optimizers" in one.why


# --- the base ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("saved", "says"),
    [
        ({"optimizer": "adam"}, "was trained with --optimizer adam"),
        ({"num_layers": 2}, "does not say what it was trained with"),  # as an import
        ({"optimizer": "muon"}, None),
        ({"optimizer": "dist_muon"}, None),
    ],
)
@pytest.mark.parametrize("flag", ["load", "pretrained_checkpoint"])
def test_a_base_of_another_optimizer(
    saved: dict[str, Any],
    says: str | None,
    flag: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    write_checkpoint(tmp_path, "release", **saved)
    tell_doubts(args(**{flag: str(tmp_path)}))
    said = capsys.readouterr().out
    assert (says or "WARNING") in said if says else not said
    assert "--optimizer adam by the losses" in said or not says
    tell_doubts(args(**{flag: str(tmp_path), "optimizer": "adam", "qk_clip": False}))
    assert capsys.readouterr().out == ""


def test_the_runs_own_checkpoint_is_what_it_starts_from(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As the host has it: the base only while the run has none of its own."""
    write_checkpoint(tmp_path / "base", "iter_0000010", optimizer="adam")
    given = {"load": str(tmp_path / "own"), "pretrained_checkpoint": str(tmp_path / "base")}
    tell_doubts(args(**given))
    assert "WARNING" in capsys.readouterr().out
    write_checkpoint(tmp_path / "own", "iter_0000002", optimizer="muon")
    tell_doubts(args(**given))
    tell_doubts(args(load=None))
    assert capsys.readouterr().out == ""


def test_a_released_model_is_loaded_whatever_the_step(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_checkpoint(tmp_path, "release", optimizer="muon")
    tell_doubts(args(load=str(tmp_path), ckpt_step=5))
    assert capsys.readouterr().out == ""


def test_of_a_base_in_an_object_store_nothing_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    tell_doubts(args(load="msc://bucket/base", finetune=True))
    assert capsys.readouterr().out == ""


# --- logits ------------------------------------------------------------------------------------


def test_the_hosts_number() -> None:
    step = ({}, 0, False, False, 0, 1.0, None, 7.5)
    assert upstream.attention_logit(step, args()) == 7.5
    assert upstream.attention_logit(step, args(qk_clip=False)) == 7.5
    of = args(**NO_LOGITS)
    assert upstream.attention_logit(step[:7], of) is None
    assert upstream.attention_logit(step[:7], SimpleNamespace()) is None  # before 0.16


def test_evaluations_of_ours_leave_the_logits_as_they_are() -> None:
    class Attention:
        current_max_attn_logits: Any = 3.0

    first, second = Attention(), Attention()
    second.current_max_attn_logits = None
    chunks = [
        SimpleNamespace(modules=lambda: [object(), first]),
        SimpleNamespace(modules=lambda: [second]),
    ]
    with pytest.raises(ValueError), upstream.kept_attention_logits(chunks):
        first.current_max_attn_logits = second.current_max_attn_logits = 9.0
        raise ValueError
    assert first.current_max_attn_logits == 3.0
    assert second.current_max_attn_logits is None


# --- the page, doctor, the presets, the host ---------------------------------------------------


def test_the_page_has_the_flags_as_the_recipes_have_them() -> None:
    page = text("docs/muon.md")
    for one in (*MUON.flags, *QK_CLIP.flags):
        assert f"| `{one.name}` | {one.says} | {one.versions} |" in page
    for recipe in (MUON, QK_CLIP):
        for refusal in (*recipe.refusals, *recipe.doubts):
            assert f"| {refusal.flags} | {refusal.why} |" in page


def test_doctor(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("megatron.core")
    monkeypatch.setenv("COLUMNS", "250")
    main(["doctor"])
    said = capsys.readouterr().out
    for part in ("Muon", "QK-clip", "emerging-optimizers (", "docs/muon.md"):
        assert part in said


# Which optimizers the parser takes, with the flags that it has.
_OPTIMIZERS = """
import argparse, domain_pretrain
domain_pretrain.enable("cpu")
from megatron.training.arguments import add_megatron_arguments
parser = add_megatron_arguments(argparse.ArgumentParser())
print(*parser._option_string_actions["--optimizer"].choices)
"""


def test_the_hosts_parser_has_the_flags() -> None:
    pytest.importorskip("megatron.training.arguments")
    host, flags = parser_of()
    done = subprocess.run([sys.executable, "-c", _OPTIMIZERS], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    have = flags | {f"--optimizer {one}" for one in done.stdout.splitlines()[-1].split()}
    for one in (*MUON.flags, *QK_CLIP.flags):
        expected = host in SpecifierSet(one.versions, prereleases=True)
        assert (one.name in have) == expected, one.name
    named = {word for name in ("muon", "muonclip") for word in preset(name) if word[:2] == "--"}
    assert named <= flags


def test_the_page_shows_the_presets() -> None:
    page = " ".join(text("docs/muon.md").replace("\\\n", " ").split())
    for name in ("muon", "muonclip"):
        assert " ".join(preset(name)) in page
        assert f"configs/recipes/{name}.env" in page


def test_only_attention_asks_for_transformer_engine_2_9() -> None:
    """The CPU backend answers yes for our attention: to nothing else."""
    arguments = pytest.importorskip("megatron.training.arguments")
    source = Path(arguments.__file__).read_text(encoding="utf-8")
    asked = [part.split("\n", 2)[1] for part in source.split('is_te_min_version("2.9.0")')[1:]]
    assert sorted("clip" in one for one in asked) == [False, True]
    assert all("--qk-clip" in one or "--log-max-attention-logit" in one for one in asked)
