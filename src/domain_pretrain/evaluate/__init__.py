"""What a model knows, by domain: probes, and the scores they give.

``model`` says what a probe may ask of a model, and makes one of any function from tokens to logits.
A ``probe`` is a rule, (model, options) → scores; ``run_probes`` runs those that a mapping names.
``completion``, ``sentence``, ``contrast`` and ``choice`` ask about ``items``; ``perplexity`` reads
held-out ``texts`` in rolling ``windows``; ``continuation`` has them continued by ``generate``, and
measures the ``likeness``; ``replay`` reads samples of training; ``harness`` asks lm-eval's tasks;
a ``suite`` is a file of probes. They run on one rank, and know nothing of the others. ``rows``
makes tokens of texts; ``random_state`` keeps what a run draws; ``fixed`` says which validation
samples make a fixed set. Imports rules, records, prepare and data.
"""

# Importing a probe registers it.
from domain_pretrain.evaluate import (  # noqa: F401
    choice,
    completion,
    continuation,
    contrast,
    harness,
    perplexity,
    replay,
    sentence,
    suite,
)
from domain_pretrain.evaluate.model import LogitsModel, Model, Row
from domain_pretrain.evaluate.probe import (
    Probe,
    ProbeOptions,
    build_probes,
    check_probes,
    register,
    run_probes,
)
from domain_pretrain.evaluate.rows import text_row
from domain_pretrain.records.score import Part, Score

__all__ = [
    "LogitsModel",
    "Model",
    "Part",
    "Probe",
    "ProbeOptions",
    "Row",
    "Score",
    "build_probes",
    "check_probes",
    "register",
    "run_probes",
    "text_row",
]
