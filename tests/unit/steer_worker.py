"""What four gloo processes do in test_steer.py: DP2 × CP2 against the recipe, written down."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from domain_pretrain.flow.domain_step import DomainStep
from domain_pretrain.flow.groups import Groups
from domain_pretrain.flow.microbatch import Microbatch
from domain_pretrain.flow.steer import Reweighting
from domain_pretrain.flow.tap import Rows
from domain_pretrain.strategies.section import parse_reweight
from domain_pretrain.watch import Watch
from domain_pretrain.watch.section import Watching

NAMES = tuple(f"d{i}" for i in range(6))  # "d5" is always absent
B, S, CP = 3, 16, 2
TEMPERATURE = 0.4
COLLECTIVES = ("all_reduce", "broadcast", "all_gather", "all_gather_into_tensor", "reduce")
counts: Counter[str] = Counter()


def run(rank: int, folder: str) -> None:
    """Entry of a process."""
    store = Path(folder, "store").as_uri()
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=4)
    for name in COLLECTIVES:
        setattr(dist, name, counted(name, getattr(dist, name)))
    within_the_forward_pass(rank)
    lagged(rank)
    dist.barrier()
    dist.destroy_process_group()


def counted(name: str, function: Any) -> Any:
    def count(*args: Any, **kwargs: Any) -> Any:
        counts[name] += 1
        return function(*args, **kwargs)

    return count


def pair(ranks: list[list[int]], rank: int) -> Any:
    """This rank's group of two; every rank makes every group."""
    groups = [dist.new_group(members) for members in ranks]
    return groups[[rank in members for members in ranks].index(True)]


def rows(seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A data parallel rank's losses ``[B, S]``, mask and ids, whole.

    On a grid of 2^-16 nats, so that sums in float64 are exact in whatever order.
    """
    generator = torch.Generator().manual_seed(seed)
    losses = torch.rand(B, S, generator=generator) * 9
    losses = torch.round(losses * 2**16) / 2**16
    mask = (torch.rand(B, S, generator=generator) < 0.7).float()
    return losses, mask, torch.randint(0, 5, (B,), generator=generator)


def cut(tensor: torch.Tensor, cp_rank: int) -> torch.Tensor:
    """Zigzag: chunks r and 2·cp − 1 − r of 2·cp."""
    chunks = tensor.chunk(2 * CP, dim=-1)
    return torch.cat([chunks[cp_rank], chunks[2 * CP - 1 - cp_rank]], dim=-1)


def within_the_forward_pass(rank: int) -> None:
    dp_rank, cp_rank = divmod(rank, CP)
    cp_group = pair([[0, 1], [2, 3]], rank)
    dp_group = pair([[0, 2], [1, 3]], rank)
    groups = Groups(
        dp_cp=dist.group.WORLD, dp_cp_size=4, dp_rank=dp_rank, cp_rank=cp_rank, cp_size=CP
    )
    for seed in range(10):
        losses, mask, ids = rows(2 * seed + dp_rank)
        whole = Rows.of(ids, mask.sum(1))
        part = cut(losses, cp_rank), cut(mask, cp_rank)
        # Packed rows are joined first, then cut.
        flat = tuple(cut(t.reshape(1, -1), cp_rank) for t in (losses, mask))
        for unit, straightforward in (("domain", by_domain), ("sample", by_sample)):
            how = {"scope": "microbatch", "warmup_steps": 0, "temperature": TEMPERATURE}
            section = parse_reweight({**how, "unit": unit})
            checked = Reweighting.check(section, NAMES, average="token", tokens_per_step=1.0)
            steering = checked.start(groups, torch.device("cpu"), None)
            expected = straightforward(*part, ids, cp_group, dp_group, dp_rank)
            for shape in (part, flat):
                counts.clear()
                microbatch = Microbatch.build(*shape, whole, groups)
                found = steering.weights(microbatch).of_samples(microbatch.rows)
                assert counts == {"all_reduce": 1}, counts
                # From the same sums, but each by its own softmax in float64 (over the domains
                # present, or over all with gaps): on the way to fp32 they may round apart, once.
                torch.testing.assert_close(
                    found,
                    expected,
                    rtol=2**-23,
                    atol=0,
                    msg=lambda m, at=(seed, unit): f"{at}: {m}",
                )


def by_domain(
    losses: torch.Tensor,
    mask: torch.Tensor,
    ids: torch.Tensor,
    cp_group: Any,
    dp_group: Any,
    dp_rank: int,
) -> torch.Tensor:
    """bincount, all-reduce over CP, all-gather over DP, normalise, softmax; ``[B]`` fp32."""
    token_ids = ids[:, None].expand_as(losses).flatten()
    weights = (losses * mask).double().flatten(), mask.double().flatten()
    sums = torch.stack([torch.bincount(token_ids, w, len(NAMES)) for w in weights])
    dist.all_reduce(sums, group=cp_group)
    parts = [torch.empty_like(sums) for _ in range(2)]
    dist.all_gather(parts, sums, group=dp_group)
    loss_sum, tokens = sum(parts)
    w = recipe(loss_sum, tokens)
    return (w / (tokens / tokens.sum()))[ids].float()


def by_sample(
    losses: torch.Tensor,
    mask: torch.Tensor,
    ids: torch.Tensor,
    cp_group: Any,
    dp_group: Any,
    dp_rank: int,
) -> torch.Tensor:
    """The same with a sample in the place of a domain."""
    sums = torch.stack([(losses * mask).double().sum(1), mask.double().sum(1)])
    dist.all_reduce(sums, group=cp_group)
    parts = [torch.empty_like(sums) for _ in range(2)]
    dist.all_gather(parts, sums, group=dp_group)
    loss_sum, tokens = torch.cat(parts, dim=1)
    w = recipe(loss_sum, tokens)
    return (w / (tokens / tokens.sum())).view(2, B)[dp_rank].float()


def recipe(loss_sum: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    here = tokens > 0
    mean = loss_sum[here] / tokens[here]
    h = (2 * mean - (mean.max() + mean.min())) / (mean.max() - mean.min())
    w = torch.zeros_like(loss_sum)
    w[here] = torch.softmax((h + 1).clamp(max=1) / TEMPERATURE, dim=0)
    return w


def lagged(rank: int) -> None:
    """Four data parallel ranks: one all-reduce a step, and the weights of a single process."""
    section = {"strategy": "linupper", "warmup_steps": 0}
    step = DomainStep.create(NAMES, section, tokens_per_step=2 * 4 * B * S)
    for number in range(4):
        step.open()
        counts.clear()
        for micro in range(2):
            step.loss(*rows(8 * number + 4 * micro + rank))
        step.end_step()
        assert counts == {"all_reduce": 1}, counts
    states: list[Any] = [None] * 4
    dist.all_gather_object(states, step.state_dict())
    assert states[0] == states[rank]
    multipliers = states[0]["reweight"]["multipliers"]
    assert multipliers["d5"] == 1.0
    assert len(set(multipliers.values())) > 2
    single = one_process(section)
    assert states[0] == single.state_dict()


def one_process(section: dict[str, Any]) -> DomainStep:
    checked = Reweighting.check(
        parse_reweight(section), NAMES, average="token", tokens_per_step=2 * 4 * B * S
    )
    reweighting = checked.start(Groups(), torch.device("cpu"), None)
    watch = Watch(Watching(), NAMES)
    step = DomainStep(NAMES, Groups(), torch.device("cpu"), None, reweighting, watch=watch)
    for number in range(4):
        step.open()
        for seed in range(8 * number, 8 * number + 8):
            step.loss(*rows(seed))
        step.end_step()
    return step
