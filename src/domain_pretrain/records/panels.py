"""W&B's panels: a workspace with one chart for each metric, all domains in it.

    from domain_pretrain.records.panels import workspace

    workspace("team", "project").save()

once for a project, where one is logged in; it needs ``pip install wandb-workspaces``.
"""

from __future__ import annotations

from typing import Any

from domain_pretrain.records.charts import charts


def workspace(entity: str, project: str) -> Any:
    """A saved view named *domains*, of the same charts as TensorBoard's page Custom Scalars.

    Args:
        entity: the user or the team.
        project: what the runs have as ``--wandb-project``.

    Returns:
        A ``wandb_workspaces.workspaces.Workspace``, which nobody has sent yet.
    """
    import wandb_workspaces.reports.v2 as panels
    import wandb_workspaces.workspaces as workspaces

    sections = [
        workspaces.Section(
            name=category,
            is_open=True,
            panels=[
                panels.LinePlot(title=title, metric_regex=f"^{pattern}")
                for title, (_, (pattern,)) in content.items()
            ],
        )
        for category, content in charts(weights=True, mix=True).items()
    ]
    return workspaces.Workspace(entity=entity, project=project, name="domains", sections=sections)
