"""What is compared: three arms of data, and in each of them the treatments."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

DOMAINS = ("general", "code", "maths")

# The plugin's defaults but for two times, which are cut to a run of a few hundred steps of 2048
# tokens: the warm-up (default 200 steps), and the horizon of the loss estimates (default 16 steps'
# worth, 10,923 tokens of a domain).
REWEIGHT = {"warmup_steps": 20, "ema_tokens": 4096}


@dataclass(frozen=True)
class Arm:
    """One kind of training data. Validation is the same in all: clean text of each domain.

    Attributes:
        title: for tables and the picture.
        blend: parts of the training data: domain → corpus → weight.
        continued: whether it starts from the base model, trained on general text alone.
        first_lr: where the search for uniform's learning rate begins.
        treatments: what is compared.
    """

    title: str
    blend: Mapping[str, Mapping[str, float]]
    continued: bool
    first_lr: float
    treatments: tuple[str, ...] = ("uniform", "linupper", "static", "shuffled")


ARMS = {
    "clean": Arm(
        "clean: three domains, 1 : 1 : 1",
        {"general": {"general": 1.0}, "code": {"code": 1.0}, "maths": {"maths": 1.0}},
        continued=False,
        first_lr=4e-3,
    ),
    "dirty": Arm(
        "dirty: 30 % of code's training text is scrambled",
        {"general": {"general": 1.0}, "code": {"code": 0.7, "dirty": 0.3}, "maths": {"maths": 1.0}},
        continued=False,
        first_lr=4e-3,
    ),
    "cpt": Arm(
        "cpt: from a base of general text; code and maths 1 : 5 general",
        {"general": {"general": 5.0}, "code": {"code": 0.5}, "maths": {"maths": 0.5}},
        continued=True,
        first_lr=2e-3,
        treatments=("uniform", "linupper", "static", "shuffled", "pinned"),
    ),
}

TREATMENTS = {
    "uniform": "uniform",
    "linupper": "linupper",
    "static": "static average",
    "shuffled": "shuffled",
    "pinned": "linupper, general pinned",
}


def reweight(treatment: str, seed: int, average: Mapping[str, float] | None) -> dict[str, Any]:
    """The config's section ``reweight`` for a treatment.

    Args:
        treatment: a key of :data:`TREATMENTS`.
        seed: of the run. It chooses which way the shuffled weights go round: over an even number
            of seeds, each of the three domains gets both others' weights equally often.
        average: multipliers for ``static``: those of the linupper run of the same seed.
    """
    if treatment == "uniform":
        return {"strategy": "uniform", **REWEIGHT}
    if treatment in ("linupper", "pinned"):
        return {"strategy": "linupper", **REWEIGHT}
    if treatment == "shuffled":
        return {"strategy": "shuffled_linupper", "shift": 1 + seed % 2, **REWEIGHT}
    if treatment == "static" and average is not None:
        return {"strategy": "static", "weights": dict(average), "uniform_part": 0.0, **REWEIGHT}
    raise ValueError(f"no treatment {treatment!r} with average {average}")
