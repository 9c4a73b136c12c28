"""Installing and removing the plugin, in any order with Megatron's import."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from support.flags import FLAG, OF_SCRIPTS, assert_exist, named, parser_of
from support.prefixes import write_prefix

from domain_pretrain.config import DomainConfig
from domain_pretrain.data.blend import Blend
from domain_pretrain.errors import ConfigError, LogFolderError, UnsupportedError
from domain_pretrain.flags import PluginArgs
from domain_pretrain.hosts import support
from domain_pretrain.hosts.facts import RunFacts, log_dir_of
from domain_pretrain.hosts.megatron import SEAMS
from domain_pretrain.hosts.session import Session
from domain_pretrain.hosts.support import (
    EVERY_REFUSAL,
    REFUSALS,
    REFUSED_WITH_MIX,
    REFUSED_WITH_ROLLBACK,
    REFUSED_WITH_WEIGHTS,
    check_flags,
    check_version,
)
from domain_pretrain.section import parse

PRELUDE = """
import sys
from importlib import import_module
import domain_pretrain
from domain_pretrain.hosts.megatron import SEAMS

def places():
    for seam in SEAMS:
        owner = import_module(seam.module)
        *path, name = seam.attribute.split(".")
        for part in path:
            owner = getattr(owner, part)
        yield owner, name

def standing():
    return [getattr(owner, name) for owner, name in places()]

def ours(function):
    return function.__code__.co_filename.endswith("hosts/megatron.py")
"""

INSTALLED_BEFORE = """
domain_pretrain.enable("cpu")
domain_pretrain.disable()
assert "megatron" not in sys.modules
originals = standing()
assert not any(map(ours, originals)), "disabled before Megatron was imported"

domain_pretrain.enable()
first = standing()
assert all(map(ours, first))
assert [function.__wrapped__ for function in first] == originals
domain_pretrain.enable()
assert standing() == first, "enabled twice is enabled once"

domain_pretrain.disable()
assert standing() == originals
domain_pretrain.disable()
domain_pretrain.enable()
assert all(map(ours, standing()))

from functools import wraps
for owner, name in places():
    if name == "evaluate_and_print_results":
        @wraps(getattr(owner, name))
        def theirs(*args, **kwargs): pass
        setattr(owner, name, theirs)
before = standing()
try:
    domain_pretrain.disable()
except Exception as error:
    assert "patched again after us" in str(error), error
else:
    raise AssertionError("their patch would have been dropped")
assert standing() == before, "all or nothing"
"""

INSTALLED_DURING_IMPORT = """
domain_pretrain.enable("cpu")
from megatron.training.training import train_step
from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler
assert ours(train_step), "names that __main__ takes are ours already"
assert all(map(ours, standing()))
domain_pretrain.disable()
assert not any(map(ours, standing()))
assert not ours(OptimizerParamScheduler.state_dict)
"""


def run(code: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PRELUDE + code],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-4000:]


@pytest.mark.megatron
@pytest.mark.parametrize("code", [INSTALLED_BEFORE, INSTALLED_DURING_IMPORT])
def test_enable_and_disable(code: str) -> None:
    pytest.importorskip("megatron.core")
    run(code)


def test_each_seam_says_why() -> None:
    assert len({seam.name for seam in SEAMS}) == len({seam.target for seam in SEAMS}) == len(SEAMS)
    for seam in SEAMS:
        assert len(seam.why.split()) > 8


@pytest.mark.parametrize("version", ["0.12.0", "0.12.3", "0.19.2", "0.20.0rc0", "0.20.0.dev1"])
def test_versions_in_range(version: str) -> None:
    check_version(version, allow_unknown=False)


@pytest.mark.parametrize("version", ["0.11.0", "0.21.0", "1.0"])
def test_versions_out_of_range(version: str) -> None:
    with pytest.raises(UnsupportedError, match=f"megatron.core {version} is outside"):
        check_version(version, allow_unknown=False)
    check_version(version, allow_unknown=True)


PLAIN = SimpleNamespace(context_parallel_size=1, micro_batch_size=1, pipeline_model_parallel_size=1)
REFUSED = {
    "--hybrid-context-parallel": {"hybrid_context_parallel": True},
    "data of a split's own": {"data_path": ["1", "a"], "per_split_data_args_path": "blends.json"},
    "and pipeline stages": {
        "sft": True,
        "dataloader_inter_document_masking": False,
        "micro_batch_size": 2,
        "pipeline_model_parallel_size": 2,
    },
    "--sft with": {"sft": True, "context_parallel_size": 2, "micro_batch_size": 2},
    "--multiple-validation-sets with virtual": {
        "multiple_validation_sets": True,
        "virtual_pipeline_model_parallel_size": 2,
    },
    "full-iteration CUDA graph": {
        "multiple_validation_sets": True,
        "cuda_graph_impl": "full_iteration",
    },
    "--iterations-to-skip": {"iterations_to_skip": [2]},
    "--full-validation without": {"full_validation": True},
    "--perform-rl-step": {"perform_rl_step": True},
    "--logits-load-dir": {"logits_load_dir": "logits"},
    "--export-kd-teacher-load": {"export_kd_teacher_load": "teacher"},
    "--flextron": {"flextron": True},
    "a vision language model": {"freeze_LM": False},
    "--freeze-all-layers": {"freeze_all_layers": True},
    "--inprocess-restart": {"inprocess_restart": True},
    "--tensor-parallel-num-weight-shards": {"gtp_weight_remat_size": 2},
    "te with reweighting": {
        "cross_entropy_loss_fusion": True,
        "cross_entropy_fusion_impl": "te",
    },
}
WITH_MIX = {
    "--dataloader-type cyclic": {"dataloader_type": "external"},
    "--phase-transition-iterations": {"phase_transition_iterations": [5]},
    "--dataloader-fast-cache-load": {"dataloader_defer_npy_index_mmap": True},
    "--sft or --mock-data with mix": {"mock_data": True},
}
OWN = {"save": "run", "load": "run"}
WITH_ROLLBACK = {
    "--save and --load that are not": {**OWN, "load": "base"},
    "--finetune or --ckpt-step": {**OWN, "ckpt_step": 5},
    "--non-persistent-save-interval": {**OWN, "non_persistent_save_interval": 5},
}


OF_FLAGS = REFUSALS + REFUSED_WITH_WEIGHTS


def test_every_refusal_is_tested() -> None:
    for refusals, parts in (
        (OF_FLAGS, REFUSED),
        (REFUSED_WITH_MIX, WITH_MIX),
        (REFUSED_WITH_ROLLBACK, WITH_ROLLBACK),
    ):
        for refusal in refusals:
            assert any(part in refusal.flags for part in parts)


@pytest.mark.parametrize("part", [*REFUSED, *WITH_MIX, *WITH_ROLLBACK])
def test_refused_flags(part: str) -> None:
    given = {**REFUSED, **WITH_MIX, **WITH_ROLLBACK}[part]
    refusals = REFUSED_WITH_MIX if part in WITH_MIX else OF_FLAGS
    if part in WITH_ROLLBACK:
        refusals = REFUSED_WITH_ROLLBACK
        check_flags(SimpleNamespace(**{**vars(PLAIN), **OWN}), refusals)
    else:
        check_flags(PLAIN, refusals)
    with pytest.raises(UnsupportedError, match="is not supported with channel loss") as caught:
        check_flags(SimpleNamespace(**{**vars(PLAIN), **given}), refusals)
    assert part in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_the_flags_of_every_refusal_are_looked_for() -> None:
    flags = {flag for refusal in EVERY_REFUSAL for flag in FLAG.findall(refusal.flags)}
    assert flags <= named() | OF_SCRIPTS.keys()


@pytest.mark.megatron
def test_every_flag_that_is_named_can_be_typed() -> None:
    """In errors, refusals and notices, by the parser of the Megatron that is installed."""
    if not (find_spec("megatron") and find_spec("megatron.training")):
        pytest.skip("megatron-core is not installed")
    assert_exist(*parser_of())


def test_transformer_engine_with_a_factor_a_token(monkeypatch: pytest.MonkeyPatch) -> None:
    args = SimpleNamespace(**REFUSED["te with reweighting"])
    for version, fits in (("2.10.0", False), ("2.11.0+cu13", True)):
        monkeypatch.setattr(support, "version", lambda name, version=version: version)
        if fits:
            check_flags(args, REFUSED_WITH_WEIGHTS)
        else:
            with pytest.raises(UnsupportedError, match=r"Transformer Engine 2\.11 or newer"):
                check_flags(args, REFUSED_WITH_WEIGHTS)


def test_packed_rows_before_they_were_laid_end_to_end() -> None:
    """0.18 has no --dataloader-inter-document-masking, and its rows do not crash."""
    parts = REFUSED["and pipeline stages"].items()
    older = {key: value for key, value in parts if not key.startswith("dataloader")}
    check_flags(SimpleNamespace(**{**vars(PLAIN), **older}))


@pytest.mark.parametrize("data", ["train_data_path", "data_args_path"])
def test_data_named_once(data: str) -> None:
    check_flags(SimpleNamespace(**vars(PLAIN), **{data: "a"}))


def test_the_metrics_file_goes_to_a_folder_on_a_disk(capsys: pytest.CaptureFixture[str]) -> None:
    store = "s3://bucket/save"
    assert log_dir_of(None, None, None) is None
    assert log_dir_of(None, store, "save") == log_dir_of(None, "save", store) == Path("save")
    assert log_dir_of("own", store, "save") == Path("own")
    assert "domain_metrics" not in capsys.readouterr().out
    assert log_dir_of(None, None, store) is None
    assert f"no domain_metrics.jsonl is written, since {store}" in capsys.readouterr().out


@pytest.mark.parametrize(
    "graph",
    [
        {"cuda_graph_impl": "local", "cuda_graph_scope": "full_iteration"},
        {"cuda_graph_impl": "local", "cuda_graph_scope": ["full_iteration"]},
        {"enable_cuda_graph": True, "cuda_graph_scope": "full_iteration"},
    ],
)
def test_older_spellings_of_a_full_iteration_graph(graph: dict[str, object]) -> None:
    args = SimpleNamespace(**vars(PLAIN), multiple_validation_sets=True, **graph)
    with pytest.raises(UnsupportedError, match="CUDA graph"):
        check_flags(args)


A, B = "s3://bucket/a", "s3://bucket/b"
AB: Blend = ([A, B], [1.0, 1.0])
GRAPH = {"cuda_graph_impl": "full_iteration"}


def start(
    per_split: list[Blend] | None, blend: Blend = None, config: Any = None, **flags: object
) -> Session:
    facts = RunFacts(
        core_version="0.19.2",
        flags=SimpleNamespace(
            **{**vars(PLAIN), "seq_length": 8, "split": None if blend is None else "8,1,1", **flags}
        ),
        refusals=(),
        blends=lambda: (blend, per_split),
        validation_set_names=None,
        micro_batch_size=1,
        log_dir=None,
    )
    return Session(facts, PluginArgs(channel_loss=True), parse(DomainConfig, config or {}))


@pytest.mark.parametrize(
    "test",
    [([B, A], [1.0, 1.0]), ([A], None), ([A, B, A], [1.0, 1.0, 1.0])],
    ids=["in another order", "without ids", "of other prefixes"],
)
def test_one_graph_for_validation_and_another_test_blend(test: Blend) -> None:
    """Its replays would look the test's ids up in the validation blend's table."""
    start([AB, AB, test])
    with pytest.raises(UnsupportedError, match=r"one graph for all evaluations.*drop the graph"):
        start([AB, AB, test], **GRAPH)


@pytest.mark.parametrize(
    "per_split",
    [None, [AB, AB, ([A, B], None)], [AB, ([B, A], None), None], [AB, None, ([B, A], None)]],
    ids=["one blend", "other weights", "no test", "no validation"],
)
def test_one_graph_where_the_evaluations_agree(per_split: list[Blend] | None) -> None:
    start(per_split, AB if per_split is None else None, **GRAPH)


def test_a_tensorboard_folder_that_cannot_be_one(tmp_path: Path) -> None:
    """Megatron would find out after minutes, when it opens its writer."""
    file = tmp_path / "file"
    file.write_text("")
    for unusable in (file, file / "below"):
        with pytest.raises(LogFolderError, match=f"{file}.*--tensorboard-dir"):
            start(None, AB, tensorboard_dir=str(unusable))
    start(None, AB, tensorboard_dir=str(tmp_path / "new"))
    start(None, AB, tensorboard_dir="s3://bucket/tensorboard")
    start(None, AB, tensorboard_dir=None)


@pytest.mark.parametrize("elsewhere", [{}, {"save": "s3://run", "load": "s3://run"}])
def test_a_rollback_needs_checkpoints_on_a_disk(elsewhere: dict[str, str]) -> None:
    with pytest.raises(UnsupportedError, match="give both flags the same folder"):
        check_flags(SimpleNamespace(**{**vars(PLAIN), **elsewhere}), REFUSED_WITH_ROLLBACK)


def test_what_a_rollback_left_out_stays_out(tmp_path: Path) -> None:
    """Of every start that resumes the run: with or without a launcher, and where it only logs."""
    back = {"iteration": 9, "onset": 6, "message": "", "resume": 5, "samples": [8, 16]}
    decisions = {"decisions": [{"action": "rollback", **back}]}
    (tmp_path / "domain_decisions.json").write_text(json.dumps(decisions))
    config = {"mix": {"schedule": [{"weights": {"a": 1}}], "skip": [{"samples": [4, 9]}]}}
    run = {"train_samples": 80, "global_batch_size": 16, "load": str(tmp_path)}
    starts = [start(None, AB, config, **run, **flag) for flag in ({}, {"finetune": True})]
    assert [one.plan and one.plan.cuts for one in starts] == [((4, 16),), ((4, 9),)]
    assert starts[0]._agreed() != starts[1]._agreed()
    with pytest.raises(ConfigError, match="without mix the run would read them"):
        start(None, AB, **run)
    start(None, AB, skip_train=True, **run)
    on_spike = {**config, "watch": {"on_spike": "rollback"}}
    start(None, AB, on_spike, save=str(tmp_path), **run)
    with pytest.raises(ConfigError, match=r"without mix the run reads Megatron's own blend"):
        start(None, AB, {"watch": on_spike["watch"]}, **{**run, **OWN})


DYNAMIC = {"mix": {"dynamic": {"strategy": "linupper", "block": 16}}}


def test_a_dynamic_mix_is_held_against_the_run() -> None:
    run = {"train_samples": 80, "global_batch_size": 16}
    session = start(None, AB, DYNAMIC, **run)
    assert session.stream is not None
    assert session.stream.mixing is not None
    assert session.stream.board is not None
    with pytest.raises(ConfigError, match=r"block: 16 samples are less than .*, which is 24"):
        start(None, AB, DYNAMIC, **{**run, "global_batch_size": 24})
    with pytest.raises(ConfigError, match=r"less than a step reads, which is 32:"):
        start(None, AB, DYNAMIC, step_batch_size_schedule="0:8 1K:32 2K:16", **run)
    with pytest.raises(ConfigError, match=r"mix\.dynamic and reweight both follow the losses"):
        start(None, AB, {**DYNAMIC, "reweight": {}}, **run)
    assert start(None, AB, DYNAMIC, skip_train=True, **run).stream is None


def test_every_rank_must_have_read_the_same_options() -> None:
    run = {"train_samples": 80, "global_batch_size": 16}
    other = {"mix": {"dynamic": {**DYNAMIC["mix"]["dynamic"], "temperature": 2}}}
    agreed = [start(None, AB, config, **run)._agreed() for config in (DYNAMIC, DYNAMIC, other)]
    assert agreed[0] == agreed[1] != agreed[2]


def test_every_rank_must_have_read_the_same_channels(tmp_path: Path) -> None:
    """The names may be the same, and the numbers of one file mean others."""
    prefixes = [str(tmp_path / name) for name in ("a", "b")]
    config = {"domains": {"mixed": {"data": prefixes, "channels": True}}}

    def agreed(*of_b: str) -> str:
        for prefix, names in zip(prefixes, [("x", "y"), of_b], strict=True):
            manifest = {"channels": [{"name": name} for name in names]}
            Path(f"{prefix}.manifest.json").write_text(json.dumps(manifest), "utf-8")
            write_prefix(prefix, [8] * 20)
            np.save(f"{prefix}.channels.npy", np.zeros(20, np.int16))
        session = start(None, (prefixes, [1.0, 1.0]), config)
        assert session.catalog.names == ("mixed/x", "mixed/y")
        return session._agreed()

    assert agreed("x", "y") == agreed("x", "y") != agreed("y", "x")
