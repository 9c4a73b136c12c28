"""The preflight's arithmetic: flags, layout, batch, sizes."""

from __future__ import annotations

import pytest

from domain_pretrain.errors import ConfigError
from domain_pretrain.launch.flags import Flags
from domain_pretrain.launch.layout import data_parallel_size, layout_problems
from domain_pretrain.launch.size import checkpoint_bytes, parameters

GOOD = (
    "--num-layers 32 --hidden-size 4096 --num-attention-heads 32 --group-query-attention "
    "--num-query-groups 8 --seq-length 8192 --micro-batch-size 1 --global-batch-size 512 "
    "--tensor-model-parallel-size 4 --pipeline-model-parallel-size 2 --context-parallel-size 2 "
)


def problems(more: str, world: int = 64) -> list[str]:
    return list(layout_problems(Flags.parse((GOOD + more).split()), world))


def test_a_right_layout_has_no_problem() -> None:
    assert problems("") == []
    assert data_parallel_size(Flags.parse(GOOD.split()), 64) == 4


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (
            "--context-parallel-size 16",
            "world size 64 is not a multiple of TP x PP x CP = 4 x 2 x 16 = 128",
        ),
        ("--global-batch-size 510", "micro batch x DP = 1 x 4 = 4; the nearest is 508"),
        ("--global-batch-size 3", "the nearest is 4"),
    ],
)
def test_each_mistake_is_named(more: str, message: str) -> None:
    found = problems(more)
    assert len(found) == 1
    assert message in found[0]


@pytest.mark.parametrize(
    "more",
    [
        "--num-layers 31 --decoder-first-pipeline-num-layers 15",
        "--num-layers 30 --account-for-embedding-in-pipeline-split "
        "--account-for-loss-in-pipeline-split",
        "--num-layers 31 --num-layer-list 15,16",
        "--num-layers 31 --pipeline-model-parallel-layout Et*15|t*16L",
        "--num-layers-per-virtual-pipeline-stage 4 --global-batch-size 12",
        "--global-batch-size 510 --rampup-batch-size 6 4 1000",
        "--global-batch-size 510 --decrease-batch-size-if-needed",
        "--global-batch-size 510 --step-batch-size-schedule 0:6",
        "--seq-length 8190 --cp-comm-type allgather",
        "--expert-model-parallel-size 8 --num-experts 6",
    ],
)
def test_what_only_the_host_knows_is_the_hosts_to_say(more: str) -> None:
    """Some option makes each of them right, in some version of some host."""
    assert problems(more) == []


def test_the_last_of_two_flags_counts_and_others_are_not_looked_at() -> None:
    flags = Flags.parse(["--foo", "1", "--train-iters=5", "--bar", "--train-iters", "7", "x.py"])
    assert flags.iterations(8) == 7
    assert Flags.parse(["--train-samples", "100"]).iterations(8) == 12


def test_wrong_values_are_all_named() -> None:
    with pytest.raises(ConfigError, match=r"(?s)--seq-length: .*'long'.*--train-iters: .*'-1'"):
        Flags.parse(["--seq-length", "long", "--train-iters", "-1"])
    with pytest.raises(ConfigError, match="--save: expected one argument"):
        Flags.parse(["--save"])


# Published: 8.03B, 1.54B and 30.5B parameters, norms and biases among them.
LLAMA = (
    "--num-layers 32 --hidden-size 4096 --ffn-hidden-size 14336 --num-attention-heads 32 --swiglu "
    "--group-query-attention --num-query-groups 8 --vocab-size 128256 "
    "--untie-embeddings-and-output-weights"
)
QWEN = (
    "--num-layers 28 --hidden-size 1536 --ffn-hidden-size 8960 --num-attention-heads 12 --swiglu "
    "--group-query-attention --num-query-groups 2 --vocab-size 151936"
)
MIXTURE = (
    "--num-layers 48 --hidden-size 2048 --num-attention-heads 32 --kv-channels 128 --swiglu "
    "--group-query-attention --num-query-groups 4 --num-experts 128 --moe-ffn-hidden-size 768 "
    "--vocab-size 151936 --untie-embeddings-and-output-weights"
)


@pytest.mark.parametrize(("model", "billions"), [(LLAMA, 8.03), (QWEN, 1.54), (MIXTURE, 30.5)])
def test_parameters_are_the_published_ones(model: str, billions: float) -> None:
    flags = Flags.parse(model.split())
    assert (parameters(flags, flags.vocab_size) or 0) / 1e9 == pytest.approx(billions, rel=0.005)


def test_bytes_of_a_checkpoint() -> None:
    count = parameters(Flags.parse(LLAMA.split()), 128_256) or 0
    for more, each in (("", 12), ("--bf16", 14), ("--bf16 --no-save-optim", 2)):
        assert checkpoint_bytes(Flags.parse(f"{LLAMA} {more}".split()), 128_256) == each * count
    assert checkpoint_bytes(Flags.parse(["--num-layers", "2"]), 128_256) is None


def test_embeddings_have_the_padded_vocabularys_rows() -> None:
    def rows(more: str, vocabulary: int | None) -> float:
        flags = Flags.parse(f"{QWEN} {more}".split())
        whole, layers = parameters(flags, vocabulary), parameters(flags, None)
        assert whole is not None and layers is not None
        return (whole - layers) / 1536

    assert rows("--make-vocab-size-divisible-by 1", 257) == 257
    assert rows("", 257) == 384  # the next multiple of 128
    assert rows("--tensor-model-parallel-size 4", 257) == 512
