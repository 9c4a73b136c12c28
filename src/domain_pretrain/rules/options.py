"""Options of rules: what any rule's options have in common, and the types of single ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BeforeValidator, Field
from typing_extensions import Self

from domain_pretrain.errors import ConfigError
from domain_pretrain.section import Section
from domain_pretrain.suggest import did_you_mean

Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Steps = Annotated[int, Field(ge=0)]


def _as_list(given: Any) -> Any:
    """One name may be given without a list around it."""
    return [given] if isinstance(given, str) else given


NonEmpty = Annotated[str, Field(min_length=1)]
Names = Annotated[list[NonEmpty], Field(min_length=1), BeforeValidator(_as_list)]


class Options(Section):
    """Options of a rule; without fields, a rule that has none."""

    def bind(self, names: tuple[str, ...], where: str) -> Self:
        """The options as they hold for these domains, once at start-up.

        Args:
            names: the domains.
            where: path of the options in the config, for messages.

        Raises:
            ConfigError: a domain that needs a value has none, or a name is not a domain.
        """
        return self


def check_domains(
    key: str, given: Mapping[str, Any], names: tuple[str, ...], complete: bool
) -> None:
    """Check the keys of a mapping from domains.

    Raises:
        ConfigError: a key that is no domain; or, with ``complete``, a domain without a key.
    """
    for name in given:
        if name not in names:
            raise ConfigError(
                f"{key}: there is no domain {name!r}{did_you_mean(name, names)} "
                f"(domains: {', '.join(names)})"
            )
    missing = [name for name in names if name not in given]
    if complete and missing:
        raise ConfigError(
            f"{key}: no value for domain {', '.join(map(repr, missing))}; every domain needs one"
        )
