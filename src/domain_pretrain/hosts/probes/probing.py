"""When the probes of a run are asked, and what becomes of what they find."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Sequence
from typing import Any

import torch

from domain_pretrain.errors import ConfigError, DomainPretrainError, WriterError
from domain_pretrain.evaluate.probe import Probe
from domain_pretrain.evaluate.random_state import kept_random_state
from domain_pretrain.hosts.probes.driver import Driver, serve
from domain_pretrain.hosts.probes.scorer import Scorer
from domain_pretrain.hosts.probes.text import end_of, of_bytes, of_host
from domain_pretrain.hosts.ranks import owns_writers
from domain_pretrain.records.evaluated import Evaluated
from domain_pretrain.records.exporter import Publisher
from domain_pretrain.records.record import Event
from domain_pretrain.records.score import Score
from domain_pretrain.rules.registry import Configured


class Probing:
    """The probes of a run; every rank makes one, and calls its methods together with the others.

    Args:
        probes: with their options.
        every: they run at each so-many-th of the host's evaluations.
        by_bytes: whether the tokens are bytes; known on the rank that drives.
        args: the host's.
        device: of the model.
        publisher: takes the scores; None on ranks that do not drive.
    """

    def __init__(
        self,
        probes: Sequence[Configured[Probe]],
        every: int,
        *,
        by_bytes: bool,
        args: Any,
        device: torch.device,
        publisher: Publisher | None,
    ) -> None:
        self._probes, self._every = probes, every
        self._by_bytes = by_bytes
        self._args = args
        self._device = device
        self._publisher = publisher
        self._last: int | None = None  # iteration at which they ran

    def due(self, iteration: int, *, final: bool) -> bool:
        """Whether they run at an evaluation: by the iteration alone, as a resumed run counts.

        Args:
            iteration: of the host's evaluation.
            final: training is over, or there was none: then they run once more, unless they just
                did.
        """
        if final:
            return self._last != iteration
        interval = self._args.eval_interval
        return not interval or iteration % (interval * self._every) == 0

    def run(
        self,
        iteration: int,
        forward_step: Any,
        model: Any,
        config: Any,
        *,
        reads: Sequence[bool],
        final: bool,
        trained: bool,
    ) -> None:
        """Ask, and publish; nothing of the training is another one afterwards.

        Args:
            iteration: the last of the training.
            forward_step, model, config: what the host evaluates with.
            reads: of each model chunk of this rank, whether the host reads data for it here.
            final: as :attr:`Evaluated.final` has it.
            trained: what this process has trained would be lost with the run.

        Raises:
            ConfigError: a probe failed, where nothing is lost by saying so.
        """
        from megatron.training.global_vars import get_tokenizer

        self._last = iteration
        tokenizer = get_tokenizer()
        scorer = Scorer(
            self._args,
            forward_step,
            model,
            config,
            reads=reads,
            end=end_of(tokenizer),
            vocabulary=int(tokenizer.vocab_size),
            device=self._device,
        )
        # A probe may draw, and its libraries may seed: dropout goes on as if they had not.
        with kept_random_state(self._device):
            if not owns_writers():
                failure = serve(scorer)
            else:
                text, args = of_bytes() if self._by_bytes else of_host(tokenizer), self._args
                driver = Driver(
                    scorer,
                    text,
                    args.seq_length,
                    args.padded_vocab_size,
                    predicts=args.context_parallel_size == 1,
                )
                scores, failures = self._ask(driver)
                failure = "\n".join(failures) if failures and not trained else None
                driver.done(failure)
        if failure is not None:
            raise ConfigError(failure)
        if owns_writers():
            self._publish(iteration, scores, failures, final=final)

    def _ask(self, driver: Driver) -> tuple[list[Score], list[str]]:
        """Scores, and what went wrong: a probe that fails takes no other with it."""
        scores: list[Score] = []
        failures = []
        for probe in self._probes:
            try:
                found = list(probe.rule(driver, probe.options))
                strange = [one for one in found if not isinstance(one, Score)]
                if strange:
                    raise TypeError(f"it gave {strange[0]!r}, which is no Score")
            except Exception as error:
                if driver.broken:  # the ranks are no longer together
                    if isinstance(error, DomainPretrainError):  # this one has to say it
                        raise WriterError(f"evaluate.probes.{probe.name}: {error}") from error
                    raise
                failures.append(_told(probe.name, error))
                continue
            scores += found
        if driver.broken:
            raise RuntimeError("a probe went on after its call of the model had failed")
        return scores, failures

    def _publish(
        self, iteration: int, scores: list[Score], failures: list[str], *, final: bool
    ) -> None:
        assert self._publisher is not None
        for failure in failures:
            print(f"domain_pretrain: WARNING: {failure}; training goes on", flush=True)
            self._publisher.event(Event("probe", iteration, failure))
        if scores:
            consumed = self._args.consumed_train_samples
            self._publisher.scores(Evaluated(iteration, consumed, tuple(scores), final))


def _told(name: str, error: Exception) -> str:
    """What a probe stumbled over; where that was no mistake of the config, it has to be found."""
    if isinstance(error, ConfigError):
        return f"evaluate.probes.{name}: {error}"
    traceback.print_exc(file=sys.stderr)
    return f"evaluate.probes.{name} failed: {type(error).__name__}: {error}"
