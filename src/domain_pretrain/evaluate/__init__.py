"""What a model knows, by domain: probes, and the scores they give.

``model`` says what a probe may ask of a model, and makes one of any function from tokens to logits.
A ``probe`` is a rule, (model, options) → scores; ``completion`` is one; ``run_probes`` runs those
that a mapping names. Called from Python, by every rank of a layout alike; a training run does not
call it. Imports rules and records.
"""

from domain_pretrain.evaluate import completion  # noqa: F401 -- importing a probe registers it
from domain_pretrain.evaluate.model import LogitsModel, Model
from domain_pretrain.evaluate.probe import Probe, register, run_probes
from domain_pretrain.records.score import Score

__all__ = ["LogitsModel", "Model", "Probe", "Score", "register", "run_probes"]
