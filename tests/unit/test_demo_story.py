"""What the demo tells at its end."""

from __future__ import annotations

from domain_pretrain.demo.story import alarm_text
from domain_pretrain.records.record import Finding


def finding(rule: str, iteration: int) -> Finding:
    return Finding(rule, "dirty", iteration, "warning", "loss of dirty stays", "data", {})


def test_the_first_alarm_about_the_dirty_domain() -> None:
    assert alarm_text([], "run/domain_events.jsonl") is None
    assert alarm_text([finding("spike", 3)], "run/domain_events.jsonl") is None
    told = alarm_text(
        [finding(*one) for one in (("spike", 3), ("dirty", 490), ("dirty", 700))], "F"
    )
    assert told is not None
    assert told.startswith("dirty in iteration 490: loss of dirty stays; ")
    assert "are in F," in told
