"""Options of probes that read held-out texts, by domain."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import ClassVar

from pydantic import Field, PositiveInt, model_validator
from typing_extensions import Self

from domain_pretrain.errors import ConfigError
from domain_pretrain.evaluate.probe import ProbeOptions
from domain_pretrain.evaluate.texts import Text, held_out_of, read_texts
from domain_pretrain.rules.options import Names, NonEmpty


class HeldOutOptions(ProbeOptions):
    """Which texts a probe reads.

    Attributes:
        probe: its name, for messages.
        texts: by domain, files, folders, patterns or data prefixes.
        holdout: a folder of ``prepare --by --holdout``: what it has cut off of every domain.
        documents: of every domain; all that it has, where it has fewer.
        text_key: the field of the text in JSON and in tables.
        tokenizer: that has made the prefixes; None: their manifests say it.
    """

    probe: ClassVar[str]

    texts: dict[str, Names] = Field(default_factory=dict)
    holdout: NonEmpty | None = None
    documents: PositiveInt = 200
    text_key: NonEmpty = "text"
    tokenizer: NonEmpty | None = None

    @model_validator(mode="after")
    def _check_texts(self) -> Self:
        if not self.texts and self.holdout is None:
            raise ValueError("no texts: give texts by domain, or the folder of a holdout")
        return self

    @cached_property
    def held_out(self) -> Mapping[str, Sequence[Text]]:
        """The texts of every domain, read once: every evaluation of a run asks about the same."""
        found = {}
        for domain, places in self._places().items():
            try:
                texts = read_texts(places, self.documents, self.text_key, self.tokenizer)
            except (ConfigError, OSError) as error:
                raise ConfigError(f"{self.probe}: texts of {domain!r}: {error}") from error
            if not texts:
                raise self.nothing(domain, f"no text in {', '.join(places)}")
            found[domain] = texts
        return found

    def _places(self) -> Mapping[str, list[str]]:
        if self.holdout is None:
            return self.texts
        try:
            places = held_out_of(self.holdout)
        except ConfigError as error:
            raise ConfigError(f"{self.probe}: holdout: {error}") from error
        if both := sorted(places.keys() & self.texts.keys()):
            raise ConfigError(
                f"{self.probe}: the domain {both[0]!r} is among texts and in {self.holdout}: call "
                "it something else in texts, or leave it out there"
            )
        return {**places, **self.texts}

    def nothing(self, domain: str, why: str) -> ConfigError:
        """The error that a domain has nothing to ask about."""
        return ConfigError(
            f"{self.probe}: texts of {domain!r}: {why}; give it some, or leave it out"
        )

    def check(self) -> None:
        """Read all texts.

        Raises:
            ConfigError: they cannot be, or a domain has none.
        """
        _ = self.held_out
