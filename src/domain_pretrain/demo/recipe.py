"""What the demo trains: a small model of bytes, first on general text only, then on a blend."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from domain_pretrain.demo.corpora import Corpus
from domain_pretrain.yaml_file import as_yaml

LAYERS, HIDDEN, HEADS, SEQ_LENGTH = 4, 128, 4, 128
GLOBAL_BATCH = 16
ANNEAL = 0.1

MODEL = shlex.split(
    f"--num-layers {LAYERS} --hidden-size {HIDDEN} --num-attention-heads {HEADS} "
    f"--seq-length {SEQ_LENGTH} --max-position-embeddings {SEQ_LENGTH} "
    "--position-embedding-type rope --attention-dropout 0 --hidden-dropout 0 "
    "--split 90,10,0 --eval-iters 16 "
    "--lr-decay-style cosine --lr-warmup-fraction 0.05 --weight-decay 0.1 --clip-grad 1"
)
PADDED_VOCABULARY = 288  # 257 byte tokens; a multiple of every TP size that the heads allow


@dataclass(frozen=True)
class Phase:
    """One run of Megatron.

    Attributes:
        name: of its folder.
        title: shown above its part of the picture.
        weights: the blend, by domain.
        iterations: optimizer steps.
        peak_lr: learning rate after the warm-up; it decays to a tenth of that.
        anneal: the blend of the last :data:`ANNEAL` of the run; None: there is one all along.
    """

    name: str
    title: str
    weights: Mapping[str, float]
    iterations: int
    peak_lr: float
    anneal: Mapping[str, float] | None = None

    def flags(self, folder: Path, tp: int) -> list[str]:
        """Megatron's flags for this phase, which writes to ``folder`` and beside it."""
        words = {
            "--train-iters": self.iterations,
            "--lr": self.peak_lr,
            "--min-lr": self.peak_lr / 10,
            "--log-interval": self.log_interval,
            "--tensorboard-log-interval": self.log_interval,
            "--eval-interval": max(10, self.iterations // 10),
            "--save-interval": self.iterations,
            "--save": folder / "checkpoint",
            "--tensorboard-dir": folder.parent / "tensorboard" / self.name,
            "--data-cache-path": folder / "data-cache",
            "--domain-config": folder / "domains.yaml",
            "--domain-log-dir": folder,
            "--make-vocab-size-divisible-by": PADDED_VOCABULARY // tp,
        }
        return [*MODEL, *(str(word) for item in words.items() for word in item)]

    @property
    def log_interval(self) -> int:
        """A hundred windows: the picture then shows each one, and their moving average."""
        return max(1, self.iterations // 100)

    def write_config(self, folder: Path, corpora: Mapping[str, Corpus]) -> None:
        """Write ``domains.yaml``, which supplies the blend and its stages."""
        domains = {
            name: {"data": [str(corpora[name].prefix.resolve())], "weight": weight}
            for name, weight in self.weights.items()
        }
        config: dict[str, Any] = {"domains": domains}
        if self.anneal is not None:
            stages = [
                {"share": 1 - ANNEAL, "weights": dict(self.weights)},
                {"weights": dict(self.anneal)},
            ]
            config["mix"] = {"schedule": stages}
        (folder / "domains.yaml").write_text(as_yaml(config), "utf-8")


def phases(iterations: int) -> tuple[Phase, Phase]:
    """The base model's phase, and the continued pretraining of ``iterations`` steps."""
    base = Phase("base", "base: general alone", {"general": 1.0}, max(1, iterations * 3 // 5), 2e-3)
    # One part of domains to five of general text, which keeps the model from forgetting it.
    blend = {"general": 5.0, "code": 0.4, "maths": 0.4, "dirty": 0.2}
    # What turned out dirty is left out, and what the run is for comes last, while the rate is low.
    anneal = {"general": 4.0, "code": 1.0, "maths": 1.0}
    title = "continued pretraining: domains 1 : 5 general, at the end 1 : 2"
    return base, Phase("continued", title, blend, iterations, 1e-3, anneal)
