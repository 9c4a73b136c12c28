"""``replay``: how well a model predicts samples that a run was trained on, by group."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from domain_pretrain.errors import ConfigError, shorten
from domain_pretrain.evaluate.model import Model, Row
from domain_pretrain.evaluate.probe import ProbeOptions, register
from domain_pretrain.evaluate.rows import ask
from domain_pretrain.json_file import read_json
from domain_pretrain.records.score import Part, Score

Rows = dict[str, dict[str, list[int]]]
"""By group, the token ids of each sample by its name."""


class ReplayOptions(ProbeOptions):
    """Options of ``replay``.

    Attributes:
        rows: a JSON file of :data:`Rows`, in the tokens of the model.
    """

    rows: Path

    def check(self) -> None:
        """See :class:`ProbeOptions`."""
        _ = self.groups

    @cached_property
    def groups(self) -> Rows:
        """What the file holds.

        Raises:
            ConfigError: it cannot be read, is something else, or a group has nothing to predict.
        """
        try:
            found = TypeAdapter(Rows).validate_python(read_json(self.rows))
        except ValidationError as error:
            told = shorten(str(error.errors()[0]["msg"]))
            raise ConfigError(
                f"replay: {self.rows} has to hold an object of groups, each an object of token "
                f"ids by name: {told}"
            ) from None
        for group, rows in found.items():
            if not any(len(tokens) > 1 for tokens in rows.values()):
                raise ConfigError(f"replay: {self.rows}: {group!r} has no sample of two tokens")
        return found


@register("replay", ReplayOptions)
def replay(model: Model, options: ReplayOptions) -> list[Score]:
    """``replay`` of every group, with a part for each sample: ``−Σ log p`` over tokens, nats.

    The first token of a sample has nothing before it, as in training, and is not asked about.

    Raises:
        ConfigError: a sample does not fit the model's context.
    """
    scores = []
    for group, rows in options.groups.items():
        kept = {name: Row(tokens) for name, tokens in rows.items() if len(tokens) > 1}
        asked = ask(model, kept.values())
        parts = [
            Part(name, -value, len(row.tokens) - row.first)
            for name, (row, value) in zip(kept, asked, strict=True)
        ]
        score = Score.of("replay", group, parts, higher_is_better=False)
        assert score is not None  # every group has tokens
        scores.append(score)
    return scores
