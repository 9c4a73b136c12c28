"""How far a run has come, as a rule may know it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Course:
    """Identical on all ranks.

    Attributes:
        progress: part of the run's training samples that is read; NaN where it has no known end.
        lr: learning rate of the next step, as a part of its peak.
        last_lr: what it ends at, as a part of its peak.
        valid: validation losses in nats of the fixed set (``evaluate.samples``) by domain, if it
            was evaluated since the step before; empty otherwise.
        errors: of those that have a base (see :meth:`.StrategyOptions.bases`), the standard error
            of what they have risen by, nats; of the paired differences of the set's samples.
        most: largest share of the stream that each domain's data are enough for, from here to the
            end, by name; empty where nothing limits it.
    """

    progress: float = math.nan
    lr: float = 1.0
    last_lr: float = 1.0
    valid: Mapping[str, float] = field(default_factory=dict)
    errors: Mapping[str, float] = field(default_factory=dict)
    most: Mapping[str, float] = field(default_factory=dict)
