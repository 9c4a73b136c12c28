"""What a plan becomes: the host's flags, ``plan.json``, and the run's ``--domain-config``."""

from __future__ import annotations

import glob
import json
from pathlib import Path
from typing import Any

from domain_pretrain.config import DomainConfig
from domain_pretrain.data.blend import check_data_path
from domain_pretrain.data.mix.plan import make_plan as stream
from domain_pretrain.data.prefixes import check_files, normalise
from domain_pretrain.data.reading import Reading
from domain_pretrain.data.splits import parse_split
from domain_pretrain.errors import ConfigError
from domain_pretrain.json_file import read_json
from domain_pretrain.planning import before
from domain_pretrain.planning.corpora import ALREADY_READ
from domain_pretrain.planning.plan import Plan, PrefixPlan
from domain_pretrain.section import parse
from domain_pretrain.whole_file import whole_file
from domain_pretrain.yaml_file import as_yaml, read_yaml

PLAN, CONFIG = "plan.json", "domains.yaml"
_OWN = ("schedule", "already_read")  # of mix, what is the plan's to say
WARM_UP = "0.01"  # of the steps, as the presets in configs/launch


def flags(plan: Plan, config: Path) -> list[str]:
    """The host's flags, and ``--domain-config``.

    Of one stage, the weights are the samples of each prefix: whole numbers that add up to those of
    the run, which Megatron's blend then meets exactly. Several stages are in the config's ``mix``.

    Raises:
        ConfigError: Megatron would read a weight as something else.
    """
    file = plan.file
    words = [
        *("--seq-length", str(file.seq_length)),
        *("--global-batch-size", str(file.batch)),
        *("--train-iters", str(plan.iterations)),
        *("--split", file.split),
        *(() if plan.before is None else before.flags(plan.before, file)),
    ]
    if len(plan.stages) == 1:
        blend = [word for one in plan.prefixes for word in (str(one.samples), one.source.prefix)]
        check_data_path(blend)
        words += ["--data-path", *blend]
    return [*words, "--domain-config", str(config)]


def rate_flags(plan: Plan) -> list[str]:
    """A learning rate that goes with the stages: it decays over the last, or over the only one.

    What goes on from another run is the last of its stages, also where it has only one.
    """
    warm_up = ["--lr-warmup-fraction", WARM_UP]
    if len(plan.stages) == 1 and plan.before is None:
        return ["--lr-decay-style", "cosine", *warm_up]
    last = str(plan.stages[-1].iterations)
    return ["--lr-decay-style", "WSD", "--lr-wsd-decay-iters", last, *warm_up]


def config_of(plan: Plan) -> dict[str, Any]:
    """The run's config: the domains that are sampled, and the mix of several stages.

    What the plan's ``domain_config`` says besides is kept, but for the weights of the domains.
    """
    given = plan.file.domain_config
    base: dict[str, Any] = {} if given is None else read_yaml(given)
    kept = base.get("domains", {})
    domains: dict[str, Any] = {}
    for one in plan.prefixes:
        name = one.source.domain
        domain = domains.setdefault(name, {**kept.get(name, {}), "data": []})
        domain.pop("weight", None)
        # An entry of a config may be a glob; this one is its prefix.
        domain["data"].append(glob.escape(one.source.prefix))
    config = {**base, "domains": domains}
    # A plan of one stage is one blend, whatever its domain_config mixed.
    mix = {key: value for key, value in base.get("mix", {}).items() if key not in _OWN}
    if len(plan.stages) > 1:
        mix["schedule"] = [_stage(plan, n) for n in range(len(plan.stages))]
    return {**config, "mix": mix} if mix else {k: v for k, v in config.items() if k != "mix"}


def _stage(plan: Plan, n: int) -> dict[str, Any]:
    return {
        "samples": plan.stages[n].samples,
        "weights": {
            name: next(iter(own.values())) if _alone(plan, name) else own
            for name, own in samples_of_stage(plan, n).items()
        },
        "shape": "constant",
    }


def _alone(plan: Plan, domain: str) -> bool:
    return sum(one.source.domain == domain for one in plan.prefixes) == 1


def samples_of_stage(plan: Plan, n: int) -> dict[str, dict[str, int]]:
    """By domain and prefix; without those that give none."""
    found: dict[str, dict[str, int]] = {}
    for one in plan.prefixes:
        if one.stages[n]:
            found.setdefault(one.source.domain, {})[one.source.prefix] = one.stages[n]
    return found


def plan_json(plan: Plan, config: Path) -> dict[str, Any]:
    """Everything that there is to know; JSON values."""
    length = plan.file.seq_length
    return {
        "seq_length": length,
        "global_batch_size": plan.file.batch,
        "split": plan.file.split,
        "iterations": plan.iterations,
        "samples": plan.samples,
        "tokens": plan.samples * length,
        "stages": [
            {
                "name": stage.name,
                "iterations": stage.iterations,
                "samples": stage.samples,
                "tokens": stage.samples * length,
                "share": stage.samples / plan.samples,
                "samples_by_domain": samples_of_stage(plan, n),
            }
            for n, stage in enumerate(plan.stages)
        ],
        "prefixes": [_prefix(one, plan, length) for one in plan.prefixes],
        "left_out": list(plan.left_out),
        **({} if plan.before is None else {"continues": plan.before.told()}),
        "warnings": list(plan.warnings),
        "flags": flags(plan, config),
        "learning_rate_flags": rate_flags(plan),
    }


def _prefix(one: PrefixPlan, plan: Plan, length: int) -> dict[str, Any]:
    corpus = one.source.corpus
    return {
        "domain": one.source.domain,
        "part": one.source.part,
        "prefix": one.source.prefix,
        "corpus_tokens": corpus.tokens,
        "samples_per_epoch": corpus.samples,
        "samples": one.samples,
        "tokens": one.samples * length,
        "share": one.samples / plan.samples,
        "epochs": one.epochs,
    }


def write(plan: Plan, source: Path, folder: Path) -> list[str]:
    """Write ``plan.json`` and ``domains.yaml``, each as a whole; the flags of the run.

    Args:
        plan: to write.
        source: the file that it was made from.
        folder: need not exist; an earlier plan in it is replaced.

    Raises:
        ConfigError: there is a ``domains.yaml`` that is not the plan's to replace, or no run would
            take what the ``domain_config`` says besides.
    """
    config, target = folder / CONFIG, folder / PLAN
    given = plan.file.domain_config
    if given is not None and config.resolve() == given.resolve():
        raise ConfigError(f"{config} is the domain_config of the plan: give another --output")
    if config.exists() and not target.exists():
        raise ConfigError(f"{config} is there, and no plan has made it: give another --output")
    head = f"# By domain-pretrain plan {source}, which replaces it: change that, or a copy.\n"
    own = config_of(plan)
    if plan.read is not None:
        own["mix"] = {**own.get("mix", {}), "already_read": str(folder / ALREADY_READ)}
    _check(own, plan)
    content = as_yaml(own)
    found = plan_json(plan, config)
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(found, indent=2, ensure_ascii=False) + "\n"
    files = [(target, text), (config, head + content)]
    if plan.read is not None:
        files.insert(0, (folder / ALREADY_READ, json.dumps(plan.read, indent=1) + "\n"))
    for path, written in files:
        with whole_file(path) as file:
            file.write(written.encode("utf-8"))
    return list(found["flags"])


def _check(config: dict[str, Any], plan: Plan) -> None:
    """As the run does, so far as the indices tell: what is not sampled has no documents to skip.

    Raises:
        ConfigError: says what it would refuse.
    """
    prefixes = [one.source.prefix for one in plan.prefixes]
    domain_of = {normalise(one.source.prefix): one.source.domain for one in plan.prefixes}
    blend = (prefixes, [float(one.samples) for one in plan.prefixes])
    reading = Reading((blend,), parse_split(plan.file.split), check_files(prefixes))
    length = plan.file.seq_length
    try:
        mix = parse(DomainConfig, config).mix
        if mix.asked_for:
            stream(mix, reading, domain_of, samples=plan.samples, seq_length=length, look_up=False)
    except ConfigError as error:
        made_of = plan.file.domain_config or "the plan"
        what = f"the run would refuse the config that comes of {made_of}:"
        raise ConfigError("\n  ".join([what, *str(error).split("\n")])) from None


def flags_of(path: str | Path) -> list[str]:
    """The flags that a ``plan.json`` holds.

    Raises:
        ConfigError: it cannot be read, or is none.
    """
    content = read_json(path)
    words = content.get("flags") if isinstance(content, dict) else None
    if not (words and isinstance(words, list) and all(isinstance(word, str) for word in words)):
        raise ConfigError(f"{str(path)!r} is no plan.json of domain-pretrain plan: it has no flags")
    broken = [word for word in words if "\n" in word]
    if broken:
        raise ConfigError(f"{str(path)!r}: a script cannot read {broken[0]!r}, with its line break")
    return words
