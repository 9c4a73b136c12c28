"""The plugin's own command-line flags; everything finer is in the YAML file."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Any

from domain_pretrain.errors import ConfigError


@dataclass(frozen=True)
class PluginArgs:
    """The plugin's flags, with their defaults; :func:`add_arguments` says what each does."""

    channel_loss: bool = False
    domain_config: str | None = None
    domain_reweight: str | None = None
    domain_log_dir: str | None = None
    domain_backend: str = "auto"
    allow_unknown_host: bool = False
    allow_domain_change: bool = False


CHOICES = {
    "domain_backend": ("auto", "cpu", "cuda", "npu"),
}


def add_arguments(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """Add the group "domain_pretrain" to Megatron's parser, and return the parser."""
    group = parser.add_argument_group("domain_pretrain")

    def switch(name: str, text: str) -> None:
        group.add_argument(name, action="store_true", help=text)

    def option(name: str, metavar: str | None, text: str) -> None:
        dest = name[2:].replace("-", "_")
        group.add_argument(
            name,
            metavar=metavar,
            choices=CHOICES.get(dest),
            default=getattr(PluginArgs, dest),
            help=text,
        )

    switch("--channel-loss", "report the loss of every domain")
    option("--domain-config", "FILE", "YAML file that names the domains; implies --channel-loss")
    option(
        "--domain-reweight",
        "NAME",
        "reweight the domains by this strategy ('none': do not, whatever the config says); "
        "implies --channel-loss",
    )
    option(
        "--domain-log-dir",
        "DIR",
        "folder of domain_metrics.jsonl (default: the TensorBoard folder, else the save folder)",
    )
    option("--domain-backend", None, "device to run on (default auto: the accelerator, else cpu)")
    switch(
        "--allow-unknown-host",
        "run on a Megatron version outside the tested range if all signature checks pass",
    )
    switch(
        "--allow-domain-change",
        "resume from a checkpoint whose domains or training data differ; state is mapped by name",
    )
    return parser


def plugin_args(namespace: Any) -> PluginArgs:
    """The plugin's flags as ``namespace`` has them.

    Args:
        namespace: Megatron's args. What is missing there (``--yaml-cfg`` replaces the namespace) or
            None takes its default.

    Raises:
        ConfigError: a value is none of the allowed ones.
    """
    given: dict[str, Any] = {}
    for field in fields(PluginArgs):
        value = getattr(namespace, field.name, None)
        if value is not None:
            given[field.name] = value
    for name, allowed in CHOICES.items():
        if given.get(name, allowed[0]) not in allowed:
            raise ConfigError(
                f"--{name.replace('_', '-')} {given[name]}: must be one of {', '.join(allowed)}"
            )
    if "domain_config" in given or given.get("domain_reweight", "none") != "none":
        given["channel_loss"] = True
    return PluginArgs(**given)


def names_of(words: Iterable[str]) -> set[str]:
    """The flags among a command line's words, without their values."""
    return {word.split("=", 1)[0] for word in words if word.startswith("-")}
