"""Reference losses from the metrics file of a baseline run."""

import json
import math

import pytest

from domain_pretrain.errors import ConfigError
from domain_pretrain.flow.steer import Reweighting
from domain_pretrain.strategies import build
from domain_pretrain.strategies.reference import final_losses
from domain_pretrain.strategies.section import parse_reweight


def write(path, *lines):
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def values(loss_sum, tokens):
    return {"loss": None, "loss_sum": loss_sum, "tokens": tokens}


def line(iteration, split="train", **domains):
    """domains: name=(loss_sum, tokens)."""
    return {
        "iteration": iteration,
        "split": split,
        "domains": {name: values(s, n) for name, (s, n) in domains.items()},
    }


def test_the_last_tenth_of_the_tokens_of_each_domain(tmp_path):
    # a: 20 lines of 10 tokens, the last tenth are the last two: (20 + 10)/20 = 1.5.
    # b occurs in three early lines, 10 tokens each: its last tenth is in the last of them, 4.
    lines = [line(i, a=(99, 10)) for i in range(1, 19)]
    for i, s in ((2, 90), (3, 60), (4, 40)):
        lines[i]["domains"]["b"] = values(s, 10)
    lines += [line(19, a=(20, 10)), line(20, a=(10, 10))]
    lines.append(line(20, split="valid", a=(1000, 10)))
    path = write(tmp_path / "domain_metrics.jsonl", *lines)
    assert final_losses(path) == {"a": 1.5, "b": 4.0}
    assert final_losses(tmp_path) == {"a": 1.5, "b": 4.0}  # the folder will do


def test_lines_without_a_finite_loss_do_not_count(tmp_path):
    entries = [line(1, a=(30, 10)), line(2, a=(math.nan, 10)), line(3, a=(None, 10))]
    entries += [line(4, a=(1, 10)), {"iteration": 5, "split": "train", "domains": {"a": 1}}]
    entries[3]["domains"]["a"]["nonfinite"] = 1
    path = write(tmp_path / "domain_metrics.jsonl", *entries)
    assert final_losses(path) == {"a": 3.0}


def test_a_run_that_averages_over_samples(tmp_path):
    """Two samples, of 10 tokens at 5 nats and of 90 at 1: as that run has it 3, and not 1.4."""
    entry = line(1, a=(140, 100), b=(20, 10), c=(9, 9))
    for name, sample_loss_sum, samples in (("a", 6.0, 2), ("b", 2.0, 1), ("c", 0.0, 0)):
        entry["domains"][name] |= {"sample_loss_sum": sample_loss_sum, "samples": samples}
    path = write(tmp_path / "domain_metrics.jsonl", entry)
    assert final_losses(path) == {"a": 3.0, "b": 2.0}


def test_means_of_another_kind_are_refused(tmp_path):
    """Over samples here, over tokens there: a gap of their own."""
    path = write(tmp_path / "domain_metrics.jsonl", line(1, a=(140, 100), b=(20, 10)))
    section = parse_reweight({"strategy": "excess", "reference": str(path)})
    Reweighting.check(section, ("a", "b"), average="token")
    with pytest.raises(ConfigError, match=r"reweight.reference: .*over tokens.*over samples"):
        Reweighting.check(section, ("a", "b"), average="sample")
    given = parse_reweight({"strategy": "excess", "reference": {"a": 1.4, "b": 2.0}})
    Reweighting.check(given, ("a", "b"), average="sample")


def test_lines_of_many_domains_are_read(tmp_path):
    header = {"event": "start", "iteration": 0, "detail": "", "domains": ["a", "b", "c"]}
    columns = {"loss_sum": [20.0, 30.0], "tokens": [10, 10], "samples": [1, 1]}
    compact = {"iteration": 2, "split": "train", "present": [0, 2], "columns": columns}
    path = write(tmp_path / "domain_metrics.jsonl", header, line(1, a=(99, 10)), compact)
    assert final_losses(path) == {"a": 2.0, "c": 3.0}


def test_a_strategy_takes_the_path(tmp_path):
    path = write(tmp_path / "domain_metrics.jsonl", line(1, a=(20, 10), b=(30, 10), other=(1, 1)))
    rule = build("excess", {"reference": str(path)}, ("b", "a"))
    assert rule.options.reference == {"b": 3.0, "a": 2.0}
    rule = build("velocity", {"target": str(tmp_path), "initial": str(path)}, ("a",))
    assert rule.options.target == rule.options.initial == {"a": 2.0}


def test_a_domain_that_the_run_did_not_have(tmp_path):
    path = write(tmp_path / "domain_metrics.jsonl", line(1, a=(20, 10)))
    with pytest.raises(
        ConfigError, match=r"^reweight\.reference \(.*\): no value for domain 'law'"
    ):
        build("excess", {"reference": str(path)}, ("a", "law"))


def test_files_that_cannot_serve(tmp_path):
    with pytest.raises(ConfigError, match="cannot read the metrics file"):
        build("excess", {"reference": str(tmp_path / "nowhere.jsonl")}, ("a",))
    path = write(tmp_path / "domain_metrics.jsonl", line(1, split="valid", a=(20, 10)))
    with pytest.raises(ConfigError, match="no training losses in it"):
        build("excess", {"reference": str(path)}, ("a",))


@pytest.mark.parametrize("name", ["a\0b", "\ud800", "x" * 5_000, "x/" * 3_000], ids=len)
def test_a_path_that_no_file_can_have(name):
    with pytest.raises(ConfigError, match="cannot read the metrics file") as caught:
        build("excess", {"reference": name}, ("a",))
    assert len(str(caught.value)) < 1_000
