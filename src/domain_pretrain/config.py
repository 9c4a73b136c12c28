"""What the user may say: the YAML file and the one group of command-line flags."""

from __future__ import annotations

import argparse
import difflib
import hashlib
import json
import re
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from domain_pretrain.errors import ConfigError
from domain_pretrain.stats import Average
from domain_pretrain.strategies.loss_shape import ShapeOptions
from domain_pretrain.strategies.options import parse
from domain_pretrain.strategies.reweighter import ReweightOptions
from domain_pretrain.strategies.shapes import SHAPES
from domain_pretrain.yaml_file import read_yaml

# What writers of TensorBoard tags keep as it is (some turn all else into "_"), without the "/" that
# would open a new section.
NAME = re.compile(r"\w[\w.-]*")


class _Section(BaseModel):
    """A mapping of the file; a key that it does not know is an error, never ignored."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Domain(_Section):
    """One domain: where its data is, and how much of the training blend it takes."""

    data: Annotated[
        list[Annotated[str, Field(min_length=1)]],
        Field(
            min_length=1,
            description="Data prefixes as Megatron takes them, or globs over their `.idx` files.",
        ),
    ]
    weight: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = Field(
        default=None,
        description="The domain's part of the training blend, relative to the other weights.",
    )
    pinned: bool = Field(
        False,
        description="Never reweighted: its multiplier is 1 (replay data, say).",
    )
    floor: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] | None = Field(
        None,
        description="The smallest multiplier that reweighting may give it.",
    )

    @field_validator("weight", "floor", mode="before")
    @classmethod
    def _refuse_boolean(cls, value: Any) -> Any:
        if isinstance(value, bool):  # pydantic would read YAML's `yes` as 1.0
            raise PydanticCustomError("float_type", "Input should be a valid number")
        return value


class ChannelLoss(_Section):
    """How a domain's loss is summed and averaged."""

    average: Average = Field(
        default="token",
        description="Mean over tokens, or over samples (each sample's own token mean).",
    )
    kernels: Literal["auto", "reference", "cuda"] = Field(
        default="auto",
        description="What sums: CUDA kernels, or plain torch; `auto`: what the device can run.",
    )


class Reweight(ReweightOptions):
    """How the domains' losses steer the training; further keys are the strategy's own options."""

    scope: Literal["global_batch", "microbatch"] = Field(
        "global_batch",
        description="What the weights are made of: all steps so far, or this very microbatch.",
    )
    unit: Literal["domain", "sample"] = Field(
        "domain",
        description="What is weighed; `sample` needs `scope: microbatch`.",
    )

    @model_validator(mode="after")
    def _check_scope(self) -> Reweight:
        if self.scope == "global_batch":
            if self.unit == "sample":
                raise PydanticCustomError("unit", "unit: sample needs scope: microbatch")
            return self
        idle = self.model_fields_set & {"blend", "clip", "ema_tokens"}
        if self.unit == "sample":
            idle |= self.model_fields_set & {"objective"}
        if idle:
            raise PydanticCustomError(
                "idle_key",
                "{keys} has no effect with scope: microbatch{unit}: take it out",
                {
                    "keys": ", ".join(sorted(idle)),
                    "unit": " and unit: sample" if self.unit == "sample" else "",
                },
            )
        if self.strategy not in SHAPES:
            raise PydanticCustomError(
                "strategy",
                "strategy {strategy} needs the losses of whole steps; with scope: microbatch use "
                "one of {known}",
                {"strategy": repr(self.strategy), "known": ", ".join(SHAPES)},
            )
        return self

    def curve(self) -> ShapeOptions:
        """The options of a strategy that works within a microbatch."""
        known = tuple(type(self).model_fields)
        return parse(ShapeOptions, self.model_extra or {}, "reweight", known)


class DomainConfig(_Section):
    """The file given by ``--domain-config``."""

    domains: dict[str, Domain] = Field(
        default_factory=dict,
        description="The domains, by name. Empty: every data prefix is a domain of its own.",
    )
    channel_loss: ChannelLoss = Field(
        default=ChannelLoss(), description="How a domain's loss is summed and averaged."
    )
    reweight: Reweight | None = Field(
        default=None, description="Dynamic reweighting of the domains; absent: none."
    )

    @field_validator("domains")
    @classmethod
    def _check_names(cls, domains: dict[str, Domain]) -> dict[str, Domain]:
        for name in domains:
            if not NAME.fullmatch(name):
                raise PydanticCustomError(
                    "domain_name",
                    "the domain name {name} cannot be part of a TensorBoard tag: use letters, "
                    "digits, '_', '-' and '.', beginning with a letter, digit or '_'",
                    {"name": repr(name)},
                )
        return domains

    @model_validator(mode="after")
    def _check_all_or_no_weights(self) -> DomainConfig:
        missing = [name for name, domain in self.domains.items() if domain.weight is None]
        if missing and len(missing) < len(self.domains):
            raise PydanticCustomError(
                "weights",
                "domain {name} has no weight while others have one: give a weight to every "
                "domain, or to none",
                {"name": repr(missing[0])},
            )
        return self

    @classmethod
    def load(cls, path: str | Path) -> DomainConfig:
        """Read and check a config file.

        Args:
            path: a YAML file.

        Raises:
            ConfigError: the file cannot be read, is not a YAML mapping, or breaks the schema; the
                message lists every offending key by its path.
        """
        content = read_yaml(path)
        if not isinstance(content, dict):
            found = "is empty" if content is None else f"holds a {type(content).__name__}"
            raise ConfigError(
                f"domain config {str(path)!r} {found}: it must be a mapping with the keys "
                f"{', '.join(cls.model_fields)}"
            )
        try:
            return cls.model_validate(content)
        except ValidationError as error:
            problems = [_describe(problem) for problem in error.errors()]
            raise ConfigError(
                "\n  ".join([f"domain config {str(path)!r} is wrong:", *problems])
            ) from None

    def reweighting(self, strategy: str | None) -> Reweight | None:
        """The ``reweight`` section as it holds with ``--domain-reweight``; None: no reweighting.

        Raises:
            ConfigError: the file and the flag name different strategies.
        """
        if strategy == "none" or (strategy is None and self.reweight is None):
            return None
        given = {} if self.reweight is None else self.reweight.model_dump(exclude_unset=True)
        if strategy is not None and given.setdefault("strategy", strategy) != strategy:
            raise ConfigError(
                f"--domain-reweight {strategy} and reweight.strategy: {given['strategy']} of the "
                "config disagree: take one out"
            )
        return parse(Reweight, given, "reweight")

    def digest(self) -> str:
        """sha256 of what the file says, hexadecimal.

        It does not depend on formatting, the order of keys, or keys set to their default (so a key
        that a later version adds does not change it).
        """
        content = self.model_dump(mode="json", exclude_defaults=True)
        canonical = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        return hashlib.sha256(canonical.encode()).hexdigest()


def _describe(problem: Any) -> str:
    """One line for one of pydantic's errors: the path of the key, what is wrong, what was given."""
    path = [str(part) for part in problem["loc"] if part != "[key]"]
    message = problem["msg"]
    if problem["type"] == "extra_forbidden":
        known = list(_section_at(path[:-1]).model_fields)
        near = difflib.get_close_matches(path[-1], known, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        message = f"unknown key{hint} (known keys: {', '.join(known)})"
    elif not isinstance(problem["input"], (dict, BaseModel)):
        message += f" (given: {problem['input']!r})"
    return f"{'.'.join(path) or 'top level'}: {message}"


def _section_at(path: list[str]) -> type[BaseModel]:
    """The schema of the mapping at ``path``; a domain's name leads to :class:`Domain`."""
    section: type[BaseModel] = DomainConfig
    for key in path:
        if key in section.model_fields:
            annotation = section.model_fields[key].annotation
            for part in get_args(annotation) or (annotation,):
                if isinstance(part, type) and issubclass(part, BaseModel):
                    section = part
    return section


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
        "load a checkpoint whose list of domains differs; state is mapped by name",
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
