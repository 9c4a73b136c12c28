"""docs/strategies.md says what the code does: options, defaults, and an example that runs."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from domain_pretrain.strategies import Observation, build
from domain_pretrain.strategies.multipliers import MultiplierOptions
from domain_pretrain.strategies.registry import STRATEGIES

PAGE = (Path(__file__).parents[2] / "docs" / "strategies.md").read_text(encoding="utf-8")
BUILT_IN = sorted(
    name for name, (rule, _) in STRATEGIES._rules.items() if rule.__module__.startswith("domain_pr")
)


def written(default):
    if hasattr(default, "at"):  # a temperature schedule that is constant
        return str(default.end)
    return "none" if default is None else json.dumps(default)


@pytest.mark.parametrize("name", BUILT_IN)
def test_every_option_of_a_rule_is_on_the_page_with_its_default(name):
    section = PAGE.split(f"\n### `{name}`\n")[1].split("\n### ")[0].split("\n## ")[0]
    section = " ".join(section.split())
    for key, field in STRATEGIES._rules[name][1].model_fields.items():
        default = "required" if field.is_required() else written(field.default)
        assert f"`{key}` ({default})" in section


def test_the_common_options_are_on_the_page_with_their_defaults():
    for key, field in MultiplierOptions.model_fields.items():
        default = field.default
        default = list(default) if isinstance(default, tuple) else default
        shown = f"`{default}`" if isinstance(default, str) else json.dumps(default)
        assert f"| `{key}` | {shown} |" in PAGE


def test_the_example_runs(monkeypatch):
    monkeypatch.setattr(STRATEGIES, "_rules", dict(STRATEGIES._rules))
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
    exec(code, {"__name__": "example"})
    loss, yes = np.array([1.0, 2.0]), np.ones(2, bool)
    seen = Observation(("a", "b"), 0, yes, loss, yes, loss, loss)
    weights, _ = build("plain", {"temperature": 0.5}, ("a", "b"))(seen, {})
    np.testing.assert_allclose(weights, [1 / (1 + np.e**2), 1 / (1 + np.e**-2)], rtol=1e-14)
