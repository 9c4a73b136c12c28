"""The page as one file."""

from __future__ import annotations

import re
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

from domain_pretrain.errors import ConfigError
from domain_pretrain.records.experts_file import read_experts
from domain_pretrain.records.reader import read_evaluations, read_findings
from domain_pretrain.report.curves import XAxis
from domain_pretrain.report.history import History
from domain_pretrain.report.page import evaluations, experts, sections, tables
from domain_pretrain.report.page.markup import Markup, data, element, join
from domain_pretrain.report.page.numbers import numbers
from domain_pretrain.report.page.packing import Packing
from domain_pretrain.report.page.parts import Told
from domain_pretrain.report.planned import read_planned
from domain_pretrain.report.practice import check
from domain_pretrain.version import __version__
from domain_pretrain.whole_file import whole_file

STYLES = ("uplot/uPlot.min.css", "page.css")
SCRIPTS = ("uplot/uPlot.iife.min.js", "decode.js", "charts.js", "experts.js", "page.js")
# Of a chart: its key among the curves, its title, what it shows. Drawn where a run has it.
CHARTS = (
    ("train", "Training loss", "nats; on the right, the same as perplexity"),
    ("valid", "Validation loss", "nats, by evaluation; on the right, the same as perplexity"),
    ("shares", "Shares of the samples", "lines: what was trained on; dashed: the plan"),
    ("weights", "Multipliers", "of the losses, by reweighting"),
    ("experts", "Use of the experts", "entropy of each domain's load; 1: all get the same"),
)
HOST = (
    ("learning_rate", "Learning rate", "as the host logs it"),
    ("grad_norm", "Gradient norm", "of all parameters, before clipping"),
    ("max_attention_logit", "Largest attention logit", "of all heads and layers"),
    ("tokens_per_second", "Throughput", "training tokens per second"),
)


def write_page(
    named: Sequence[tuple[str, History]],
    log_dirs: Sequence[Path],
    out: Path,
    *,
    x: XAxis = "tokens",
    compare: bool = False,
) -> int:
    """Write it; returns its bytes.

    Args:
        named: name of each run, and what happened in it.
        log_dirs: of each, where its journal and its findings are.
        out: the file; an older one is replaced.
        x: what the curves begin with as their horizontal axis.
        compare: the runs begin at one place; else one after the other.

    Raises:
        ConfigError: it cannot be written.
    """
    planned = [read_planned(folder) for folder in log_dirs]
    findings = [read_findings(folder) for folder in log_dirs]
    counted = [read_experts(folder) for folder in log_dirs]
    packing = Packing()
    drawn = numbers(named, planned, findings, packing, x=x, compare=compare)
    places = {one["name"]: place for place, one in enumerate(drawn["domains"])}
    for run, table in zip(drawn["runs"], counted, strict=True):
        run["experts"] = experts.packed(table, places, packing)
    runs = [
        Told(name, history, plan, found, check(history, plan.entropy), told, table, places)
        for (name, history), plan, found, told, table in zip(
            named, planned, findings, map(read_evaluations, log_dirs), counted, strict=True
        )
    ]
    parts = {
        "title": join(" · ".join(run.name for run in runs)),
        "styles": _source(STYLES),
        "tiles": sections.tiles(runs),
        "figures": _figures(named),
        "alarms": sections.alarms(runs) or Markup(),
        "checks": sections.checks(runs),
        "evaluations": evaluations.evaluations(runs) or Markup(),
        "experts": experts.section_of(runs) or Markup(),
        "tables": tables.tables(runs),
        "comparison": (tables.comparison(runs) if compare else None) or Markup(),
        "version": join(__version__),
        "data": data(drawn),
        "packed": packing.text(),
        "scripts": _source(SCRIPTS),
    }
    # In one go: a part, which may hold any name, is not looked through for further places.
    text = re.sub(r"\{\{(\w+)\}\}", lambda place: parts[place[1]], _source(("page.html",)))
    page = text.encode("utf-8", "replace")  # a path that is no UTF-8 has lone surrogates
    try:
        with whole_file(out) as file:
            file.write(page)
    except OSError as error:
        raise ConfigError(f"cannot write {out}: {error.strerror}") from error
    return len(page)


def _source(names: Sequence[str]) -> str:
    folder = files("domain_pretrain.report.page")
    return "\n".join(folder.joinpath(name).read_text(encoding="utf-8") for name in names)


def _figures(named: Sequence[tuple[str, History]]) -> Markup:
    histories = [history for _, history in named]
    found = [
        _figure(key, title, caption)
        for key, title, caption in CHARTS
        if any(_has(history, key) for history in histories)
    ]
    host = [
        _figure(key, title, caption)
        for key, title, caption in HOST
        if any(key in history.host for history in histories)
    ]
    return join(
        element("div", *found, class_="figures"), element("div", *host, class_="figures host")
    )


def _has(history: History, key: str) -> bool:
    series = {
        "train": history.train,
        "valid": history.valid,
        "shares": history.counts,
        "weights": history.weights,
        "experts": history.experts,
    }
    return bool(series[key].names)


def _figure(key: str, title: str, caption: str) -> Markup:
    return element(
        "figure",
        element("figcaption", element("h3", title, id=f"{key}-title"), element("span", caption)),
        element(
            "div",
            class_="chart",
            data_chart=key,
            tabindex="0",
            role="group",
            aria_labelledby=f"{key}-title",
            aria_describedby="how-to-read",
        ),
        class_=f"of-{key.replace('_', '-')}",
    )
