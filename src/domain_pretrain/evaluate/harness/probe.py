"""The probe ``harness`` and its options."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator
from typing_extensions import Self

from domain_pretrain.errors import ConfigError
from domain_pretrain.evaluate.harness.apart import apart
from domain_pretrain.evaluate.model import Model
from domain_pretrain.evaluate.probe import ProbeOptions, register
from domain_pretrain.records.score import Score
from domain_pretrain.rules.options import Names


class HarnessOptions(ProbeOptions):
    """Options of ``harness``.

    Attributes:
        tasks: by domain, names of tasks, or of groups or tags of them.
        include_path: folders with YAML files of tasks.
        include_defaults: whether the tasks that lm-eval comes with can be named.
        limit: documents of each task, from its first on; None: all.
        num_fewshot: examples in a prompt; None: as each task has it.
        online: whether tasks may fetch their data from the network.
    """

    predicts: ClassVar[bool] = True

    tasks: Annotated[dict[str, Names], Field(min_length=1)]
    include_path: Names | None = None
    include_defaults: bool = False
    limit: PositiveInt | None = None
    num_fewshot: NonNegativeInt | None = None
    online: bool = False

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.include_path is None and not self.include_defaults:
            raise ValueError(
                "no task is known: give include_path, a folder with YAML files of tasks, or "
                "include_defaults: true for those that lm-eval comes with"
            )
        names = [name for own in self.tasks.values() for name in own]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"task {name!r} is named twice: it is about one domain")
        return self

    @cached_property
    def loaded(self) -> Sequence[Any]:
        """The tasks, read once: every evaluation of a run asks the same."""
        if find_spec("lm_eval") is None:
            raise ConfigError(
                "the probe harness needs lm-eval: pip install 'domain-pretrain[evaluate]'"
            )
        for folder in self.include_path or ():
            if not Path(folder).is_dir():
                raise ConfigError(f"harness: include_path: there is no folder {folder}")
        with apart(online=self.online):
            from domain_pretrain.evaluate.harness.tasks import load_tasks

            return load_tasks(
                self.tasks,
                self.include_path or (),
                defaults=self.include_defaults,
                shots=self.num_fewshot,
                hint=""
                if self.online
                else "; only files on this machine are read: name them in the task (dataset_path: "
                "json), fetch its data beforehand, or give online: true",
            )

    def check(self) -> None:
        """Load the tasks with their data.

        Raises:
            ConfigError: lm-eval is not installed, or a task or its data is not there.
        """
        _ = self.loaded


@register("harness", HarnessOptions)
def harness(model: Model, options: HarnessOptions) -> list[Score]:
    """``harness_<task>_<metric>`` of every task, by the domain that it is about.

    Raises:
        ConfigError: a task asks for what the model cannot do.
    """
    named = options.loaded
    with apart(online=options.online):
        from lm_eval import evaluate

        from domain_pretrain.evaluate.harness.model import HarnessModel
        from domain_pretrain.evaluate.harness.scores import scores_of
        from domain_pretrain.evaluate.harness.tasks import FEWSHOT_SEED, asks_for_greedy

        tasks = {name: task for one in named for name, task in one.tasks.items()}
        for task in tasks.values():
            task.set_fewshot_seed(seed=FEWSHOT_SEED)  # the same examples at every evaluation
        greedy = {task.config.task for task in tasks.values() if asks_for_greedy(task)}
        # Not simple_evaluate: that seeds Python, NumPy and PyTorch, and returns nothing where
        # LOCAL_RANK is not 0.
        found = evaluate(
            lm=HarnessModel(model, greedy),
            task_dict=tasks,
            limit=options.limit,
            bootstrap_iters=0,
            log_samples=True,
        )
        return [score for one in named for score in scores_of(one, found)]
