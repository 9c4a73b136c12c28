"""``hold``: keep what the model knows, and give all the rest to what it is to learn."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Annotated, Any, ClassVar

import numpy as np
from pydantic import BeforeValidator, Field
from typing_extensions import Self

from domain_pretrain.errors import ConfigError
from domain_pretrain.records.record import Finding
from domain_pretrain.rules.options import Names, NonNegative, Positive, check_domains
from domain_pretrain.rules.state import State
from domain_pretrain.strategies.capped import capped
from domain_pretrain.strategies.course import Course
from domain_pretrain.strategies.observation import Array, Mask, Observation
from domain_pretrain.strategies.reference import Reference, resolve
from domain_pretrain.strategies.registry import SHARES, StrategyOptions, register

# Evaluations in a row with the share at a bound, after which the goal is called out of reach.
AT_BOUND = 3
# Largest standard error of the sensor, as a part of ε, that goes without a word.
ERROR = 0.1

Part = Annotated[float, Field(gt=0, lt=1)]


def _check_rise(given: Any) -> Any:
    percent = isinstance(given, str) and re.fullmatch(r"\d+(\.\d+)?%", given)
    number = float(given[:-1]) if percent else given
    if type(number) not in (int, float) or not 0 < number < math.inf:
        raise ValueError("give nats above 0, or a percentage of the base's loss such as 1%")
    return given


Rise = Annotated[float | str, BeforeValidator(_check_rise)]


class HoldOptions(StrategyOptions):
    """Options of ``hold``.

    Attributes:
        domains: that are held, by name; one or several.
        epsilon: ε, what their validation loss may have risen by at the end of the run: nats, or,
            with ``%`` behind it, a part of the base's loss.
        anneal: A, nats above ε that it may have risen by while the learning rate is at its peak: a
            part of it comes back as the rate falls. 0: ε holds from the start.
        scale: nats that count as an error of one.
        proportional, integral: gains of the controller.
        low, high: smallest and largest share of the held domains.
        training_base: the held domains' training losses of the base, as
            :class:`.Reference`: their average now is compared with it instead, every ``interval``
            steps.
        interval: steps, with ``training_base``.
    """

    settles: ClassVar[Mapping[str, Any]] = SHARES
    needs: ClassVar[frozenset[str]] = frozenset({"valid", "lr"})
    pins: ClassVar[bool] = False

    domains: Names
    epsilon: Rise
    anneal: NonNegative = 0.0
    scale: Positive = 0.02
    proportional: NonNegative = 1.0
    integral: NonNegative = 0.15
    low: Part = 0.02
    high: Part = 0.9
    training_base: Reference | None = None
    interval: Annotated[int, Field(gt=0)] = 100

    def bind(self, names: tuple[str, ...], where: str) -> Self:
        """Some domains are held, and some are not."""
        check_domains(f"{where}.domains", dict.fromkeys(self.domains), names, complete=False)
        if set(names) == set(self.domains):
            raise ConfigError(
                f"{where}.domains names all domains: with none left to learn, there is nothing to "
                "decide; name those that the model must not forget"
            )
        if self.low >= self.high:
            raise ConfigError(f"{where}: low {self.low} should be less than high {self.high}")
        if self.training_base is not None:
            key = f"{where}.training_base"
            base: Any = resolve(self.training_base, tuple(self.domains), key)
            return self.model_copy(update={"training_base": base})
        if "interval" in self.model_fields_set:
            raise ConfigError(
                f"{where}.interval has no effect without training_base: take it out, and give "
                "--eval-interval, at which the validation set is asked"
            )
        return self

    def wants(self) -> frozenset[str]:
        """No validation losses, where training losses stand in for them."""
        return self.needs - ({"valid"} if self.training_base is not None else set())

    def doubts(self, tokens: float) -> Iterator[str]:
        """Whether the set is large enough for so small an ε, as far as that is known in nats.

        Where two models' losses differ by d nats a token, their difference varies by about
        √(2·d) from token to token (exactly so for a log-likelihood ratio that is Gaussian).
        """
        if self.training_base is not None:
            yield (
                f"hold: training_base is compared with the training loss of "
                f"{' and '.join(self.domains)}. It must be the base's loss on the very text that "
                "is trained on: of other text it is off by what the texts differ, and what is held "
                "with it. Nor does the loss of text that is read again tell what is forgotten. "
                "Prefer held-out text, evaluate.samples"
            )
            return
        if isinstance(self.epsilon, str):
            return
        error = math.sqrt(2 * self.epsilon / tokens)
        if error > ERROR * self.epsilon:
            wanted = math.ceil(2 / self.epsilon / ERROR**2)
            yield (
                f"hold: epsilon is {self.epsilon:g} nats, and {tokens:,.0f} validation tokens tell "
                f"a rise of that size to about ± {error:.2g}: give evaluate.samples more, "
                f"{wanted:,} tokens of {' and '.join(self.domains)} or above, or a larger epsilon"
            )

    def bases(self, state: State, names: tuple[str, ...]) -> dict[str, bool]:
        """Those that are held, by validation losses; one that joined later may have none."""
        if self.training_base is not None:
            return {}
        base = state.get("base", np.full(len(names), np.nan))
        found = dict(zip(names, np.isfinite(base).tolist(), strict=True))
        return {name: found[name] for name in self.domains}

    def findings(self, state: State, iteration: int) -> Iterator[Finding]:
        """What the last evaluation has shown: a goal that is out of reach, or idle, or a set that
        does not tell well enough what has been lost."""
        if not state.get("judged"):
            return
        count, share = state["at_bound"], state["share"]
        known = ("risen", "error", "goal", "share")
        evidence: dict[str, float] = {key: state[key] for key in known if key in state}
        finding = partial(Finding, "hold", self.domains[0], iteration, evidence=evidence)
        if state.get("vague") == 1:
            most = ERROR * _size(state["epsilon"], state["risen"])
            more = math.ceil((state["error"] / most) ** 2)
            yield finding(
                "warning",
                f"{self._stands(state['risen'], state['error'])}, and epsilon is "
                f"{state['epsilon']:.3g}",
                "evaluate.samples are few for so small an epsilon",
                advice=f"Its share follows the chance of these samples. Give evaluate.samples some "
                f"{more} times as many, or a larger epsilon; samples of the same document count "
                "for less.",
            )
        if abs(count) != AT_BOUND:
            return
        above = (
            f"{self._stands(state['risen'], state.get('error'))}; the goal is {state['goal']:+.3f}"
        )
        limited = state.get("limited", False)
        if count > 0:
            yield finding(
                "warning",
                f"{above}, and a share of {share:.2f} does not bring it back"
                f"{', which is all that mix.dynamic.epochs allows' if limited else ''}",
                "epsilon is out of reach",
                advice=f"Allow {'more epochs, ' if limited else ''}a larger epsilon, a lower "
                "learning rate, or data of the domain that are closer to what the base was trained "
                "on.",
            )
        elif limited:
            yield finding(
                "info",
                f"{above}, with a share of {share:.2f}, because mix.dynamic.epochs allows the "
                "others no more",
                "the others' data are all there is to learn",
                advice="Allow more epochs, find more data of the other domains, or train on less.",
            )
        else:
            yield finding(
                "info",
                f"{above}, with a share of {share:.2f}",
                "epsilon leaves room",
                advice="The domain is held by almost nothing: a higher learning rate or a smaller "
                "epsilon would cost little.",
            )

    def summary(self, state: State, names: tuple[str, ...], course: Course) -> str | None:
        """Where the run has ended, and what it amounts to."""
        if not state.get("all_tokens"):
            return None
        ends, risen, epsilon = "", state.get("risen", math.nan), state.get("epsilon", math.nan)
        if self.training_base is None:  # the state is of an evaluation before
            held = np.array([name in self.domains for name in names])
            base = state.get("base", np.full(len(names), np.nan))
            risen, epsilon = _mean(_valid(names, course) - base, held), self.nats(base, held)
        if math.isfinite(risen):
            ends = f"{self._stands(risen, _error(self.domains, course))}, epsilon {epsilon:.3g}; "
        share = state["held_tokens"] / state["all_tokens"]
        return (
            f"hold: {ends}{' and '.join(self.domains)} had {share:.3f} of the tokens: the constant "
            "share to try without hold"
        )

    def _stands(self, risen: float, error: float | None) -> str:
        """Where the held domains are."""
        of_that = "" if error is None else f" ± {error:.3f}"
        held = " and ".join(self.domains)
        if self.training_base is not None:
            held += "'s training loss"
        return f"{held} is base {'−' if risen < 0 else '+'} {abs(risen):.3f}{of_that} nats"

    def nats(self, base: Array, held: Mask) -> float:
        """ε in nats; ``base`` ``[D]`` is that of the model, ``held`` which domains are."""
        if isinstance(self.epsilon, str):
            return float(self.epsilon[:-1]) / 100 * _mean(base, held)
        return self.epsilon


@register("hold", HoldOptions)
def hold(seen: Observation, state: State, options: HoldOptions) -> tuple[Array, State]:
    """The held domains' validation loss is led along ``base + goal`` by their share ρ.

    ``goal = ε + A·(lr − lr_end)/(1 − lr_end)``, learning rates as parts of their peak;
    ``e = (d − goal)/scale``, d being the mean over the held domains of loss − base;
    ``I ← I + k_i·e`` within the bounds' logits, unless ρ is at a bound that e pushes into;
    ``ρ = clip(sigmoid(I + k_p·e), low, high)``. Within each side, domains keep their ratios.

    The base is the first evaluation, or ``training_base``. ρ starts at what the blend has, and
    stays there until the learning rate has risen to its peak.

    A PI controller of the multiplier of ``min L_rest + λ·(L_held − base − ε)``: Stooke et al.,
    2020 (arXiv:2007.03964), and, for continual learning, Elenter et al., 2023 (arXiv:2310.00154).
    """
    held = np.array([name in options.domains for name in seen.names])
    start = float(np.clip(_sum(seen.share[held]), options.low, options.high))
    if (np.nan_to_num(state.get("held", held)) != held).any():  # others were, up to a resume
        state = {"base": state["base"]} if "base" in state else {}
    fresh = {"share": start, "integral": _logit(start), "steps": 0}
    kept: State = {**fresh, "held_tokens": 0.0, "all_tokens": 0.0, **state}
    kept["held"] = held.astype(float)
    lr, before = seen.course.lr, kept.get("lr", 0.0)
    kept["judged"] = False  # whether this step brought an evaluation that moved the share
    kept.pop("error", None)  # of another one
    kept["lr"], kept["warm"] = lr, kept.get("warm", False) or 0 < lr <= before
    base, now = _sensed(seen, kept, options)
    if np.isfinite(now[held]).all():
        if np.isnan(base[held]).any():
            kept["base"] = np.where(np.isnan(base), now, base)
        elif kept["warm"]:
            risen = _mean(now - base, held)
            kept["epsilon"] = options.nats(base, held)
            goal = kept["epsilon"] + _annealing(seen, options)
            kept |= _moved(kept, risen, options, goal, _bounds(seen, held, options))
            kept |= _judged(kept, _error(options.domains, seen.course))
    kept["steps"] += 1
    kept["held_tokens"] += _sum(seen.weighed_tokens[held])
    kept["all_tokens"] += _sum(seen.weighed_tokens)
    return _shares(seen, held, kept["share"]), kept


def _sensed(seen: Observation, kept: State, options: HoldOptions) -> tuple[Array, Array]:
    """Losses of the base, and of now, ``[D]`` nats each; NaN where one is not known (yet)."""
    unknown = np.full(len(seen.names), math.nan)
    if options.training_base is None:
        return kept.get("base", unknown), _valid(seen.names, seen.course)
    base = np.array([options.training_base.get(name, math.nan) for name in seen.names])
    looks = (kept["steps"] + 1) % options.interval == 0
    return base, seen.loss if looks else unknown


def _annealing(seen: Observation, options: HoldOptions) -> float:
    """Nats that the goal is above ε, as long as the learning rate is above its last."""
    lr, last = seen.course.lr, seen.course.last_lr
    left = max(lr - last, 0.0) / (1 - last) if last < 1 else 0.0
    return options.anneal * left


def _bounds(seen: Observation, held: Mask, options: HoldOptions) -> tuple[float, float]:
    """Smallest and largest share that can be had: the data of either side may be limited."""
    low, high, most = options.low, options.high, _most(seen)
    if most is not None:
        high = max(min(high, _sum(most[held])), low)
        low = min(max(low, 1 - _sum(most[~held])), high)
    return low, high


def _moved(
    kept: State, risen: float, options: HoldOptions, goal: float, bounds: tuple[float, float]
) -> State:
    """What an evaluation changes."""
    error = (risen - goal) / options.scale
    low, high = map(_logit, bounds)
    integral = min(max(kept["integral"] + options.integral * error, low), high)
    wanted = integral + options.proportional * error
    side = 1 if wanted > high and error > 0 else -1 if wanted < low and error < 0 else 0
    count = kept.get("at_bound", 0)
    return {
        "judged": True,
        "risen": risen,
        "goal": goal,
        # Held while the actuator can do no more: else it would wind up, and let go too late.
        "integral": min(max(kept["integral"], low), high) if side else integral,
        "share": min(max(1 / (1 + math.exp(-wanted)), bounds[0]), bounds[1]),
        # By the data, not by the options.
        "limited": bool(side) and bounds[side > 0] != (options.low, options.high)[side > 0],
        "at_bound": count + side if side * count >= 0 and side else side,
    }


def _judged(kept: State, error: float | None) -> State:
    """What is known of how well the set tells the rise; it decides nothing."""
    vague, most = kept.get("vague", 0), ERROR * _size(kept["epsilon"], kept["risen"])
    if vague or (error is not None and error > most):
        vague = min(vague + 1, 2)  # 1: since this evaluation
    return {"vague": vague} if error is None else {"vague": vague, "error": error}


def _most(seen: Observation) -> Array | None:
    """``[D]``, the largest shares that the data allow; None where they allow all."""
    most = seen.course.most
    return np.array([most[name] for name in seen.names]) if most else None


def _valid(names: tuple[str, ...], course: Course) -> Array:
    """``[D]`` nats; NaN where not known."""
    return np.array([course.valid.get(name, math.nan) for name in names])


def _mean(values: Array, held: Mask) -> float:
    return _sum(values[held]) / int(held.sum())


def _size(epsilon: float, risen: float) -> float:
    """Nats that a standard error is held against: the error grows with the rise."""
    return max(epsilon, abs(risen))


def _error(domains: Sequence[str], course: Course) -> float | None:
    """Of the mean over the held domains; None where one of theirs is not known."""
    known = [course.errors[name] for name in domains if name in course.errors]
    return math.hypot(*known) / len(known) if len(known) == len(domains) else None


def _shares(seen: Observation, held: Mask, share: float) -> Array:
    """``[D]``: ρ over the held domains and 1 − ρ over the others, each in the blend's ratios, as
    far as their data allow: what one cannot give is given by others of its side."""
    found, most = np.zeros(len(seen.names)), _most(seen)
    for side, part in ((held, share), (~held, 1 - share)):
        own = side & seen.active
        if own.any():
            blend = seen.share[own]
            blend = blend if _sum(blend) > 0 else np.ones_like(blend)
            found[own] = part * blend / _sum(blend)
            if most is not None:
                found[own] = capped(found[own], most[own])
    return seen.weights(found[seen.active])


def _sum(values: Array) -> float:
    return math.fsum(values)


def _logit(part: float) -> float:
    return math.log(part / (1 - part))
