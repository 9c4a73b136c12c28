"""torchrun's agent of a node, which knows when not to restart, and leaves no process behind."""

from __future__ import annotations

import contextlib
import time
from typing import Any

from torch.distributed.elastic.agent.server.api import RunResult, WorkerGroup, WorkerState
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.rendezvous import RendezvousClosedError, RendezvousError

from domain_pretrain.launch.reaper import Reaper, kill_groups

REFUSED = 2  # the exit code of a wrong command, config or installation, as of argparse's errors
PATIENCE_S = 60  # for the other nodes to hear of it; torchrun may take 30 to end their processes
_KEY, _HEARD = "domain_pretrain/refused", "domain_pretrain/heard"


class RefusedError(Exception):
    """A rank has ended with exit code 2: a restart would end the same way."""


class Agent(LocalElasticAgent):
    """As torchrun's; differs in what follows a failure.

    * Exit code 2 of any rank ends the job on every node, without a restart. It travels in the
      store of the rendezvous.
    * A failed rank's process group is killed, not only the rank; see :mod:`.reaper`.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._reaper = Reaper()
        self._leaders: list[int] = []

    def _start_workers(self, worker_group: WorkerGroup) -> dict[int, Any]:
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
        refused = [rank for rank, end in result.failures.items() if end.exitcode == REFUSED]
        if refused:
            self._tell_the_others(worker_group)
            raise RefusedError(f"rank {min(refused)}")
        self._heed_the_others(worker_group)
        return result

    def _rendezvous(self, worker_group: WorkerGroup) -> None:
        try:
            super()._rendezvous(worker_group)
        except RendezvousClosedError:  # this node was about to restart when another one told
            self._heed_the_others(worker_group)
            raise

    # Any: torch declares the store of a group as None.

    def _tell_the_others(self, group: Any) -> None:
        with contextlib.suppress(RuntimeError, RendezvousError):  # the first node has ended: then
            group.store.set(_KEY, "")  # they notice that
            group.spec.rdzv_handler.set_closed()
        self._wait_until_all_have_heard(group)

    def _heed_the_others(self, group: Any) -> None:
        """One question to the first node per look, as torchrun's own beside it."""
        told = False
        with contextlib.suppress(RuntimeError):
            told = group.store is not None and group.store.check([_KEY])
        if told:
            self._wait_until_all_have_heard(group)
            raise RefusedError("a rank on another node")

    def _wait_until_all_have_heard(self, group: Any) -> None:
        """The store is in one of the agents, and ends with it."""
        with contextlib.suppress(RuntimeError):
            heard, end = group.store.add(_HEARD, 1), time.monotonic() + PATIENCE_S
            while heard < group.group_world_size and time.monotonic() < end:
                time.sleep(0.1)
                heard = group.store.add(_HEARD, 0)
