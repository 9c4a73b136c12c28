"""The stream of a run, from what the config asks for to what is read after a resume.

Before any data is built: a plan, and what decides its shares where the losses do. With the built
data: where a resumed run goes on (``resume``), and what it leaves out (``omissions``, ``settle``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from domain_pretrain.data.mix import carry
from domain_pretrain.data.mix.blocks import Blocks, given_before
from domain_pretrain.data.mix.locate import Locator
from domain_pretrain.data.mix.omit import Omission, continued, saved_omissions
from domain_pretrain.data.mix.plan import Plan
from domain_pretrain.data.order import Order
from domain_pretrain.data.reading import Reading
from domain_pretrain.data.resumption import Resumed, account, resumed
from domain_pretrain.errors import ConfigError, UnsupportedError
from domain_pretrain.flow.board import Board
from domain_pretrain.flow.mixing import Mixer, Mixing, Tell
from domain_pretrain.hosts.ranks import from_first_rank
from domain_pretrain.process import notice
from domain_pretrain.watch.decision import DECISIONS_FILE, Decision, ahead, blocks_of


class Streaming:
    """What takes the place of the host's blend.

    Args:
        plan: that the config asks for.
        mixing: what decides the shares; None: nothing does.
        reading: of the run.
        order: of its samples, by a plan.
        go_on: whether another stream may go on where that of the checkpoint stood.
        regardless: whether it may also where that is not exact.
        decisions: what the run has left out of its stream, which the plan is without.

    Attributes:
        plan: of the stream, as this run reads it.
        mixing: see above.
        board: of what is decided on the way, made before any worker is forked.
        limits: samples that :attr:`epochs` of every prefix have; empty until the data is built.
        resumed: how the run goes on; None until the data is built.
    """

    def __init__(
        self,
        plan: Plan,
        mixing: Mixing | None,
        reading: Reading,
        order: Callable[[Plan], Order],
        *,
        go_on: bool,
        regardless: bool,
        decisions: Sequence[Decision] = (),
    ) -> None:
        self.plan, self.mixing = plan, mixing
        self._reading, self._order = reading, order
        self._go_on, self._regardless, self._decisions = go_on, regardless, decisions
        self.board = None
        if mixing is not None:
            self.board = Board(len(plan.prefixes), Blocks.most_readable(plan))
        self.limits: Sequence[int] = ()
        self.resumed: Resumed | None = None

    @property
    def epochs(self) -> int:
        """That a prefix may be read, where that is limited."""
        return (None if self.mixing is None else self.mixing.epochs) or 1

    @property
    def continues(self) -> bool:
        """Whether another stream goes on where that of the checkpoint stood."""
        return self.resumed is not None and self.resumed.continued

    def start(self, device: torch.device, tell: Tell | None) -> Mixer | None:
        """What follows the losses, before the first step; None: nothing does.

        Args:
            device: where the losses live.
            tell: of every block that is decided.

        Raises:
            UnsupportedError: the host has not built its data by now.
        """
        if self.mixing is None or self.board is None:
            return None
        if not self.limits:
            raise UnsupportedError(
                "mix.dynamic: training begins before Megatron's BlendedMegatronDatasetBuilder has "
                "built the data; leave it out of the config"
            )
        return self.mixing.start(self.limits, self.board, device, tell)

    def resume(
        self, lengths: Sequence[int], state: Mapping[str, Any] | None, consumed: int
    ) -> Plan:
        """Once its data are built: the stream, as this run goes on with it.

        Every rank calls it. Two broadcasts from rank 0, before the first step.

        Args:
            lengths: samples that one epoch of every prefix has; none on a rank that reads no data.
            state: of the plugin, in the checkpoint that the run starts from.
            consumed: samples that the run has trained on.

        Raises:
            ConfigError: it cannot go on as ``mix.on_change`` asks for.
        """
        if self.resumed is None:
            # Once for each model chunk, of which not every one of rank 0 may read data.
            known = from_first_rank(lambda: tuple(lengths))
            if not known:
                return self.plan
            found = from_first_rank(lambda: self._resume(known, state, consumed))
            if isinstance(found, str):
                raise ConfigError(found)
            self.resumed, self.plan = found, found.plan
            if self.mixing is not None:
                decided = blocks_of(self._decisions, found.plan.begin)
                self.mixing = replace(self.mixing, plan=found.plan, decided=decided)
        return self.plan

    def _resume(
        self, lengths: Sequence[int], state: Mapping[str, Any] | None, consumed: int
    ) -> Resumed | str:
        """On the rank that knows what has been read; or why it cannot go on."""
        now = account(self.plan.prefixes, [0] * len(lengths), lengths, self._reading)
        # What is left out may change at any time, and is settled later.
        left_out = saved_omissions((state or {}).get("order"), self.plan.prefixes)
        order = self._order(replace(self.plan, omissions=left_out))
        found = Resumed(self.plan)
        try:
            found = resumed(self.plan, order, now, state, consumed, go_on=self._go_on)
            self._check_left_out(consumed, changed=found.continued or self._omits_others(left_out))
        except ConfigError as error:
            if not self._regardless:
                return str(error)
            notice(f"WARNING: --allow-domain-change carries on regardless: {error}")
        if found.continued:
            notice(
                f"mix.on_change: after {consumed:,} samples, the data are mixed in another way: "
                f"{carry.tell(found.plan, lengths)}"
            )
        return found

    def _omits_others(self, saved: Sequence[Omission]) -> bool:
        """Whether other documents are left out than the run before did."""
        before, now = (one[-1].documents if one else () for one in (saved, self.plan.omissions))
        return any(before) != any(now) or (any(now) and before != now)

    def _check_left_out(self, consumed: int, *, changed: bool) -> None:
        """Positions that are left out must mean the samples that were read there.

        Raises:
            ConfigError: they are still to come, and would be others.
        """
        cuts = ahead(self._decisions, self.plan.passed(consumed))
        if changed and cuts:
            first, stop = cuts[0]
            raise ConfigError(
                f"{DECISIONS_FILE} says that samples {first:,} to {stop:,} of the stream are left "
                "out; the run has not come to them, and with the data mixed in another way, or "
                "other documents left out, they would be other samples: give mix and the data as "
                f"they were, and change them at a checkpoint of more than "
                f"{self.plan.consumed(stop):,} consumed samples; or take the entry out of the file"
            )

    def omissions(
        self, consumed: int, state: Mapping[str, Any], locator: Locator
    ) -> Sequence[Omission]:
        """What the stream leaves out, once it is known how far the run has come.

        Args:
            consumed: samples, by the checkpoint that it goes on from.
            state: of the plugin, in that.
            locator: of the stream.
        """
        plan = self.plan
        if self.continues:
            # From here on, the windows that had no turn before count like those that were read.
            wanted = plan.omissions[-1].documents if plan.omissions else ()
            return (Omission(plan.taken, wanted),) if any(wanted) else ()
        saved = saved_omissions(state.get("order"), plan.prefixes)
        if not saved and not plan.omissions:
            return ()
        wanted = plan.omissions[-1].documents if plan.omissions else ((),) * len(plan.prefixes)
        position = plan.passed(consumed)
        if plan.block is None:
            return continued(saved, wanted, locator.before(position).tolist())
        since = given_before(state["mix"], plan, position) if "mix" in state else None
        return continued(saved, wanted, [0] * len(wanted) if since is None else since.tolist())

    def settle(self, omissions: Sequence[Omission], limits: Sequence[int]) -> None:
        """Once the stream is built; on every rank.

        Args:
            omissions: that are in force.
            limits: samples that :attr:`epochs` of every prefix have.
        """
        self.plan, self.limits = replace(self.plan, omissions=tuple(omissions)), limits
