"""The config's ``domains`` section: what a domain is called, and where its data is."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import Field, field_validator
from pydantic_core import PydanticCustomError

from domain_pretrain.section import Section

# What writers of TensorBoard tags keep as it is (some turn everything else into "_"), without the
# "/" that would open a new section.
NAME = re.compile(r"\w[\w.-]*")


class Domain(Section):
    """One domain: where its data is, and how much of the training blend it takes."""

    data: Annotated[
        list[Annotated[str, Field(min_length=1)]],
        Field(
            min_length=1,
            description="Data prefixes as Megatron takes them, or globs over their `.idx` files.",
        ),
    ]
    weight: Annotated[float, Field(gt=0)] | None = Field(
        default=None,
        description="The domain's part of the training blend, relative to the other weights.",
    )
    channels: bool = Field(
        False,
        description="Its documents have channels (`prepare --channel-key`): each is a domain, "
        "`name/channel`.",
    )
    pinned: bool = Field(
        False,
        description="Never reweighted: its multiplier is 1, its share that of the blend (replay, "
        "say).",
    )
    floor: Annotated[float, Field(ge=0, le=1)] | None = Field(
        None,
        description="The smallest multiplier that reweighting may give it.",
    )

    @field_validator("weight", "floor", mode="before")
    @classmethod
    def _refuse_boolean(cls, value: Any) -> Any:
        if isinstance(value, bool):  # pydantic would read YAML's `yes` as 1.0
            raise PydanticCustomError("float_type", "Input should be a valid number")
        return value


def check_names(domains: dict[str, Domain]) -> dict[str, Domain]:
    """Refuse a name that cannot be part of a tag, as pydantic's validators do."""
    for name in domains:
        if not NAME.fullmatch(name):
            raise PydanticCustomError(
                "domain_name",
                "the domain name {name} cannot be part of a TensorBoard tag: use letters, "
                "digits, '_', '-' and '.', beginning with a letter, digit or '_'",
                {"name": repr(name)},
            )
    return domains


def check_weights(domains: dict[str, Domain]) -> dict[str, Domain]:
    """Refuse weights of some domains only, as pydantic's validators do."""
    missing = [name for name, domain in domains.items() if domain.weight is None]
    if missing and len(missing) < len(domains):
        raise PydanticCustomError(
            "weights",
            "domain {name} has no weight while others have one: give a weight to every "
            "domain, or to none",
            {"name": repr(missing[0])},
        )
    return domains
