"""torchrun's agent of a node, which knows when not to restart, and leaves no process behind."""

from __future__ import annotations

import contextlib
import time
from typing import Any, NoReturn

from torch.distributed.elastic.agent.server.api import RunResult, WorkerGroup, WorkerState
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.rendezvous import RendezvousClosedError, RendezvousError

from domain_pretrain.errors import ConfigError
from domain_pretrain.launch.flags import Flags
from domain_pretrain.launch.reaper import Reaper, kill_groups
from domain_pretrain.watch.decision import EXIT_CODE as DECIDED
from domain_pretrain.watch.decision import Decision, read_decisions

REFUSED = 2  # the exit code of a wrong command, config or installation, as of argparse's errors
_REFUSED = f"ended with exit code {REFUSED}: no restart can change that"
PATIENCE_S = 60  # for the other nodes to hear of it; torchrun may take 30 to end their processes
_KEY, _HEARD = "domain_pretrain/ended", "domain_pretrain/heard"


class EndedError(Exception):
    """The job is to end without a restart, with an exit code; says who ended, and why."""

    def __init__(self, code: int, why: str) -> None:
        super().__init__(why)
        self.code = code


class Agent(LocalElasticAgent):
    """As torchrun's; differs in what follows a failure.

    * Exit code 2 of any rank ends the job on every node, without a restart. It travels in the
      store of the rendezvous. So does 75 where the run has decided to stop.
    * Where it has decided to go back, it is started again, which is no restart after a failure.
    * A failed rank's process group is killed, not only the rank; see :mod:`.reaper`.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._reaper = Reaper()
        self._leaders: list[int] = []
        self._decided = 0  # so many decisions were there when the ranks started

    def _start_workers(self, worker_group: WorkerGroup) -> dict[int, Any]:
        self._decided = len(_decisions(worker_group))
        started = super()._start_workers(worker_group)
        assert self._pcontext is not None
        self._leaders = list(self._pcontext.pids().values())
        self._reaper.watch(self._leaders)
        return started

    def _shutdown(self, *args: Any, **kwargs: Any) -> None:
        try:
            super()._shutdown(*args, **kwargs)
        finally:
            # What a rank that has ended well left running, it left on purpose.
            if self._worker_group.state != WorkerState.SUCCEEDED:
                kill_groups(self._leaders)
            self._leaders = []
            self._reaper.watch([])

    def _monitor_workers(self, worker_group: WorkerGroup) -> RunResult:
        result = super()._monitor_workers(worker_group)
        if result.state == WorkerState.SUCCEEDED:
            return result
        codes = {end.exitcode: rank for rank, end in sorted(result.failures.items(), reverse=True)}
        if REFUSED in codes:
            self._end(worker_group, REFUSED, f"rank {codes[REFUSED]} {_REFUSED}")
        decided = _decisions(worker_group)[self._decided :] if DECIDED in codes else []
        if decided and decided[-1].action == "stop":
            self._end(worker_group, DECIDED, str(decided[-1]))
        self._heed_the_others(worker_group)
        if decided:
            self._remaining_restarts += 1
            worker_group.spec.max_restarts += 1
        return result

    def _rendezvous(self, worker_group: WorkerGroup) -> None:
        try:
            super()._rendezvous(worker_group)
        except RendezvousClosedError:  # this node was about to restart when another one told
            self._heed_the_others(worker_group)
            raise

    # Any: torch declares the store of a group as None.

    def _end(self, group: Any, code: int, why: str) -> NoReturn:
        """On every node."""
        with contextlib.suppress(RuntimeError, RendezvousError):  # the first node has ended: then
            group.store.set(_KEY, str(code))  # they notice that
            group.spec.rdzv_handler.set_closed()
        self._wait_until_all_have_heard(group)
        raise EndedError(code, why)

    def _heed_the_others(self, group: Any) -> None:
        """One question to the first node per look, as torchrun's own beside it."""
        code = 0
        with contextlib.suppress(RuntimeError):
            if group.store is not None and group.store.check([_KEY]):
                code = int(group.store.get(_KEY))
        if code:
            self._wait_until_all_have_heard(group)
            why = _REFUSED if code == REFUSED else "has decided to stop"
            raise EndedError(code, f"a rank on another node {why}")

    def _wait_until_all_have_heard(self, group: Any) -> None:
        """The store is in one of the agents, and ends with it."""
        with contextlib.suppress(RuntimeError):
            heard, end = group.store.add(_HEARD, 1), time.monotonic() + PATIENCE_S
            while heard < group.group_world_size and time.monotonic() < end:
                time.sleep(0.1)
                heard = group.store.add(_HEARD, 0)


def _decisions(group: Any) -> list[Decision]:
    """Of the run that the ranks' command is: where it writes them, on a disk that all nodes share.

    Not where it resumes from, which a run that stops may do elsewhere, or not at all.
    """
    with contextlib.suppress(ConfigError):  # who reads the file before training says so
        save = Flags.read([str(word) for word in group.spec.args])[0].save
        return [] if save is None else read_decisions(save)
    return []
