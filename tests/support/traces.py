"""A run that was never trained: its data, its journal and its metrics file."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from support.prefixes import write_prefix

from domain_pretrain.data.order import Order
from domain_pretrain.data.prefixes import normalise
from domain_pretrain.data.reading import Reading
from domain_pretrain.data.tokenizer import Tokenizer
from domain_pretrain.hosts.reads import tell_data, tell_run
from domain_pretrain.records.journal import note_start
from domain_pretrain.records.reader import METRICS_FILE

BATCH, SEQUENCE = 4, 16


def write_documents(prefix: Path, documents: Sequence[Sequence[int]]) -> None:
    """Files of a data prefix."""
    write_prefix(prefix, [len(one) for one in documents])
    tokens = np.concatenate([np.array(one, np.uint16) for one in documents])
    Path(f"{prefix}.bin").write_bytes(tokens.tobytes())


def line_of(iteration: int, domain: str) -> dict[str, Any]:
    """A line of the metrics file."""
    counts = {"loss": 1.0, "loss_sum": 32.0, "tokens": 32, "samples": BATCH}
    done = {"iteration": iteration, "consumed_samples": BATCH * iteration, "split": "train"}
    return {**done, "lm_loss": 1.0, "domains": {domain: counts}}


def write_metrics(folder: Path, domains: Sequence[str], iterations: int) -> None:
    """Of so many iterations."""
    lines = [
        {"event": "start", "iteration": 0, "detail": "", "domains": list(domains)},
        *(line_of(iteration, domains[0]) for iteration in range(1, iterations + 1)),
    ]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / METRICS_FILE).write_text(text, encoding="utf-8")


def note(
    folder: Path,
    domains: Mapping[str, str],
    iterations: int,
    iteration: int = 0,
    *,
    cache: str | None = None,
    tokenizer: str = "NullTokenizer",
    settings: Mapping[str, Any] | None = None,
    channels: Mapping[str, Sequence[str]] | None = None,
    **changes: Any,
) -> None:
    """Write a start to the journal, as the plugin does: Megatron's own blend, 2 parts to 1 to ….

    Args:
        folder: of the journal.
        domains: data prefix → name of its domain.
        iterations: of the whole run.
        iteration: that it starts after.
        cache: of the index files.
        tokenizer: its place.
        settings: that decide the order, beside the usual ones.
        channels: data prefix, normalised → the domains of its channels.
        changes: of what the start tells.
    """
    from megatron.core import __version__ as version
    from megatron.core.datasets.blended_megatron_dataset_builder import (
        BlendedMegatronDatasetBuilder,
    )
    from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig

    blend = (list(domains), [2.0, *[1.0] * (len(domains) - 1)])
    config = GPTDatasetConfig(
        random_seed=7,
        sequence_length=SEQUENCE,
        blend=blend,
        split="90,10,0",
        path_to_cache=cache,
        tokenizer=SimpleNamespace(unique_identifiers={"class": "x"}, vocab_size=257),
        reset_position_ids=False,
        reset_attention_mask=False,
        eod_mask_loss=False,
        create_attention_mask=False,
    )
    samples = BATCH * iterations
    builder = BlendedMegatronDatasetBuilder(GPTDataset, [samples, 8, 8], lambda: True, config)
    domain_of = {normalise(prefix): domain for prefix, domain in domains.items()}
    reading = Reading.check(blend, None, "90,10,0", SEQUENCE, domain_of, files=True)
    usual = {"--seed": 7, "--seq-length": SEQUENCE, "--dataloader-type": "single"}
    order = Order.of(reading, {**usual, **(settings or {})}, Tokenizer(tokenizer, None), samples)
    flags = SimpleNamespace(global_batch_size=BATCH, micro_batch_size=1, data_parallel_size=1)
    reads = tell_run(flags, version, reading, domain_of, None, tell_data(builder), channels)
    note_start(folder, iteration, BATCH * iteration, order.dump(), {**reads, **changes})
