"""A plan, to be read."""

from __future__ import annotations

from rich.table import Table

from domain_pretrain.planning.before import Before, changes
from domain_pretrain.planning.output import samples_of_stage
from domain_pretrain.planning.plan import Plan


def stage_table(plan: Plan) -> Table:
    """A row for each stage, and its mix."""
    table = Table("stage", title="Stages", title_justify="left")
    for column in ("steps", "samples", "tokens", "share"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("mix")
    for n, stage in enumerate(plan.stages):
        mix = [
            f"{name} {sum(own.values()) / stage.samples:.1%}"
            for name, own in samples_of_stage(plan, n).items()
        ]
        table.add_row(
            stage.name,
            f"{stage.iterations:,}",
            f"{stage.samples:,}",
            f"{stage.samples * plan.file.seq_length:,}",
            f"{stage.samples / plan.samples:.1%}",
            "  ".join(mix),
        )
    return table


def data_table(plan: Plan) -> Table:
    """A row for each prefix that is sampled: what is there, and what the run takes."""
    table = Table("domain", title="Data", title_justify="left")
    table.add_column("prefix", overflow="fold")
    for column in ("corpus", "tokens", "share", "samples", "epochs"):
        table.add_column(column, justify="right", no_wrap=True)
    for one in plan.prefixes:
        table.add_row(
            one.source.domain,
            one.source.prefix,
            f"{one.source.corpus.tokens:,}",
            f"{one.samples * plan.file.seq_length:,}",
            f"{one.samples / plan.samples:.2%}",
            f"{one.samples:,}",
            f"{one.epochs:.2f}",
        )
    return table


def changes_table(before: Before, plan: Plan) -> Table:
    """A row for each thing that is another than in the run before, or is kept."""
    title = f"Goes on from iteration {before.iteration:,} of {before.folder}"
    table = Table("", title=title, title_justify="left")
    for column in ("before", "now"):
        table.add_column(column, justify="right", no_wrap=True)
    for row in changes(before, plan.file):
        table.add_row(*row)
    return table
