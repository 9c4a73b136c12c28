"""lm-eval's tasks, as the options name them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lm_eval.api.task import ConfigurableTask
from lm_eval.tasks import TaskManager

from domain_pretrain.errors import ConfigError
from domain_pretrain.suggest import did_you_mean

FEWSHOT_SEED = 1234
"""Of the examples that a prompt shows, as lm-eval's own commands have it."""


@dataclass(frozen=True)
class Named:
    """What a name stands for.

    Attributes:
        domain: that it is about.
        name: of a task, or of a group or tag of them.
        tasks: by their own names; of a task, itself.
    """

    domain: str
    name: str
    tasks: Mapping[str, Any]


def load_tasks(
    domains: Mapping[str, Sequence[str]],
    folders: Sequence[str],
    *,
    defaults: bool,
    shots: int | None,
    hint: str,
) -> list[Named]:
    """Tasks with their data.

    Args:
        domains: names of tasks, by domain.
        folders: of YAML files of tasks.
        defaults: whether lm-eval's own can be named.
        shots: examples in a prompt, in place of the tasks' own number where that is not 0.
        hint: what else to do about a task that cannot be loaded.

    Raises:
        ConfigError: there is no such task, or it or its data cannot be read.
    """
    try:
        manager = TaskManager(include_path=list(folders), include_defaults=defaults)
    except Exception as error:  # whatever reads YAML, and the user's Python in it
        raise ConfigError(f"harness: include_path: {_said(error)}") from error
    found = []
    for domain, names in domains.items():
        for name in names:
            if name not in manager.all_tasks:
                raise ConfigError(
                    f"harness: there is no task {name!r}{did_you_mean(name, manager.all_tasks)} "
                    f"in {', '.join(folders) or 'lm-eval'}"
                    + ("" if defaults else " (include_defaults: true adds those of lm-eval)")
                )
            try:
                tasks = manager.load([name])["tasks"]
            except Exception as error:  # whatever reads data, and the user's Python
                raise ConfigError(f"harness: task {name!r}: {_said(error)}{hint}") from error
            for task in tasks.values():
                _check(name, task)
                own = task.get_config("num_fewshot")
                if own is None or (shots is not None and own != 0):
                    task.set_config(key="num_fewshot", value=shots or 0)
            found.append(Named(domain, name, tasks))
    return found


def _check(name: str, task: Any) -> None:
    if getattr(task, "UNSAFE_CODE", False) or getattr(task, "MULTIMODAL", False):
        raise ConfigError(
            f"harness: task {name!r} runs code that a model has written, or shows pictures to it; "
            "neither is done here: leave it out"
        )


def _said(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:500]


def asks_for_greedy(task: Any) -> bool:
    """Whether a task looks at which answer is the likeliest, besides how likely each is.

    Of multiple choice with lm-eval's own metrics it is known that only ``exact_match`` does.
    """
    if not isinstance(task, ConfigurableTask) or task.OUTPUT_TYPE != "multiple_choice":
        return True
    own = callable(task.config.process_results) or (
        type(task).process_results is not ConfigurableTask.process_results
    )
    return own or "exact_match" in task.aggregation()
