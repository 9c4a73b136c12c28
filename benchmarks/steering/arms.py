"""What is compared, as data: how much general text comes when, or what its losses count."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from training import Blend

DOMAINS = ("general", "code", "maths")
TARGETS = ("code", "maths")
RARE_TITLE = "maths has 40 kB, read up to six times"
DATA = {
    "clean": "three clean domains",
    "dirty": "30 % of code's training text is scrambled",
    "rare": RARE_TITLE,
}

# The static front: general's share of the blend, the targets having the rest in halves.
FRONT = (0.05, 0.15, 0.3, 0.4, 0.5, 0.6, 0.7)
# As much of it as is run again beside the runs of another machine, which end between these.
FRONT_AGAIN = FRONT[:5]
# Of every arm whose blend is not what is asked about.
MIDDLE = 0.3
# The plugin's defaults but for two times, which are cut to a run of 256 steps.
SHORT: Mapping[str, Any] = {"warmup_steps": 16, "ema_tokens": 4096}
BLOCK = 32  # samples; a step has 16


@dataclass(frozen=True)
class Known:
    """What earlier runs have told: the base, and the tuning seed.

    Attributes:
        base: the base model's test losses, by domain.
        reference: those of a static blend of :data:`MIDDLE`, for the rules that want one.
        epsilons: what ``hold`` is asked for, nats.
        hold: the options of ``hold`` that were chosen.
    """

    base: Mapping[str, float] = field(default_factory=dict)
    reference: Mapping[str, float] = field(default_factory=dict)
    epsilons: tuple[float, ...] = ()
    hold: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Arm:
    """A way to train on the three domains.

    Attributes:
        title: for tables and the picture.
        share: general's part of the blend.
        reweight, mix: sections of the config, if any; ``mix`` is its ``dynamic``.
        needs: keys of a rule that are filled in from what is known: key → attribute of ``Known``.
        epsilon: which of the known ones, where the arm is ``hold``.
    """

    title: str
    share: float = MIDDLE
    reweight: Mapping[str, Any] | None = None
    mix: Mapping[str, Any] | None = None
    needs: Mapping[str, str] = field(default_factory=dict)
    epsilon: int | None = None

    def config(self, known: Known) -> dict[str, Any]:
        """Of the plugin, besides the domains."""
        filled: dict[str, Any] = {key: getattr(known, name) for key, name in self.needs.items()}
        if self.epsilon is not None:
            filled |= {"epsilon": known.epsilons[self.epsilon], **known.hold}
        if self.reweight is not None:
            return {"reweight": {**self.reweight, **filled}}
        if self.mix is not None:
            return {"mix": {"dynamic": {**self.mix, "block": BLOCK, **filled}}}
        return {}


def blend(share: float, data: str = "clean") -> Blend:
    """Weights of the training data, general having ``share``."""
    rest = (1 - share) / 2
    code = {"code": 0.7 * rest, "dirty": 0.3 * rest} if data == "dirty" else {"code": rest}
    return {
        "general": {"general": share},
        "code": code,
        "maths": {"rare" if data == "rare" else "maths": rest},
    }


def _ends(share: float) -> dict[str, float]:
    return {"general": share, "code": (1 - share) / 2, "maths": (1 - share) / 2}


def _ramp(start: float, end: float) -> dict[str, Any]:
    return {"strategy": "ramp", "start": _ends(start), "end": _ends(end)}


STATIC = {f"static-{share:g}": Arm(f"static {share:g}", share) for share in FRONT}
HELD: Mapping[str, Any] = {"strategy": "hold", "domains": "general"}
HOLD = {
    "hold-1": Arm("hold by sampling, small ε", mix=HELD, epsilon=0),
    "hold-2": Arm("hold by sampling, large ε", mix=HELD, epsilon=1),
}
MAIN = {
    "hold-weights-1": Arm("hold by weights, small ε", 0.5, reweight=HELD, epsilon=0),
    "hold-weights-2": Arm("hold by weights, large ε", 0.5, reweight=HELD, epsilon=1),
    "ramp-up": Arm("ramp 0 → 0.6", mix=_ramp(0.0, 0.6)),
    "ramp-down": Arm("ramp 0.6 → 0", mix=_ramp(0.6, 0.0)),
    "linupper-1": Arm("linupper, r = 1", reweight={"strategy": "linupper", **SHORT}),
}
_SAMPLE: Mapping[str, Any] = {
    "strategy": "linupper",
    "scope": "microbatch",
    "unit": "sample",
    "warmup_steps": SHORT["warmup_steps"],
}
OTHERS = {
    "linupper-2": Arm(
        "linupper, r = 2", reweight={"strategy": "linupper", "temperature": 2.0, **SHORT}
    ),
    "sample-1": Arm("linupper by sample, r = 1", reweight=_SAMPLE),
    "sample-2": Arm("linupper by sample, r = 2", reweight={**_SAMPLE, "temperature": 2.0}),
    "linupper-sampling": Arm("linupper by sampling, r = 1", mix={"strategy": "linupper", **SHORT}),
    "excess": Arm(
        "excess", reweight={"strategy": "excess", **SHORT}, needs={"reference": "reference"}
    ),
    "velocity": Arm(
        "velocity",
        reweight={"strategy": "velocity", **SHORT},
        needs={"target": "reference", "initial": "base"},
    ),
    "learnability": Arm(
        "learnability",
        reweight={"strategy": "learnability", "ignore_steps": 16, "fit_steps": 32, **SHORT},
    ),
    "group-dro": Arm("group_dro", reweight={"strategy": "group_dro", **SHORT}),
}
ARMS = {**STATIC, **HOLD, **MAIN, **OTHERS}
# Of the data that are dirty or rare, and of the other sizes of the model.
FEW = ("hold-1", "linupper-1", "excess")
SCALED = ("hold-1", "hold-2")

# Of hold, on the tuning seed: how far general may rise while the rate is high, and how hard an
# error is acted on.
VARIANTS: tuple[Mapping[str, Any], ...] = (
    {"anneal": 0.0, "scale": 0.05},
    {"anneal": 0.05, "scale": 0.05},
    {"anneal": 0.1, "scale": 0.05},
    {"anneal": 0.2, "scale": 0.05},
    {"anneal": 0.1, "scale": 0.02},
    {"anneal": 0.1, "scale": 0.01},
)
