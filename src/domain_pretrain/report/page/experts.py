"""What a page tells of a mixture of experts: how each domain's tokens are spread over them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from domain_pretrain.adapt.load import entropy, shares
from domain_pretrain.records.experts_file import ExpertsTable
from domain_pretrain.report.page.markup import Markup, element
from domain_pretrain.report.page.packing import Packing
from domain_pretrain.report.page.parts import Told, domain_name, scrolling, section


def section_of(runs: Sequence[Told]) -> Markup | None:
    """A table of the domains, and a place for the map; None where no run counted experts."""
    parts: list[Markup | None] = []
    for number, run in enumerate(runs):
        if run.experts is not None and run.experts.domains:
            head = element("h3", run.name) if len(runs) > 1 else None
            parts += [head, _table(run, run.experts), _map(number, run.experts)]
    if not parts:
        return None
    note = (
        "Used: as many experts of equal load would have the entropy of the domain's own, which is "
        "all of them where all get the same. Busiest: what one expert of a layer gets, beside its "
        "even part."
    )
    return section("experts", "Experts", *parts, element("p", note, class_="meaning"))


def packed(
    table: ExpertsTable | None, places: Mapping[str, int], packing: Packing
) -> dict[str, Any] | None:
    """What the map is drawn from: each expert's share beside its even part, ``[layers · domains,
    experts]``."""
    if table is None or not table.domains:
        return None
    load = np.array(table.load)
    rows = np.nan_to_num(shares(load)) * load.shape[-1]
    known = [places.get(name) for name in table.domains]
    return {
        "layers": table.layers,
        "names": table.domains,
        "of": known,
        "load": packing.add(rows.reshape(-1, load.shape[-1])),
    }


def _table(run: Told, table: ExpertsTable) -> Markup:
    load = np.array(table.load)
    experts, used = load.shape[-1], np.exp(entropy(load))
    most = np.nan_to_num(shares(load).max(axis=-1)) * experts
    rows = []
    for at, name in enumerate(table.domains):
        fewest, busiest = int(used[:, at].argmin()), int(most[:, at].argmax())
        cells = [
            f"{used[:, at].mean():.1f} of {experts}",
            f"{used[fewest, at]:.1f} (layer {table.layers[fewest]})",
            f"{most[busiest, at]:.1f} × (layer {table.layers[busiest]}, expert "
            f"{int(load[busiest, at].argmax())})",
        ]
        rows.append(
            element(
                "tr",
                element("th", domain_name(name, run.places), scope="row"),
                *(element("td", cell) for cell in cells),
            )
        )
    caption = f"Experts of {run.name}, at iteration {table.iteration:,}"
    heads = ("domain", "used, mean of the layers", "used, fewest", "busiest")
    return scrolling(
        caption,
        element(
            "table",
            element("caption", f"At iteration {table.iteration:,}, {table.topk} a token"),
            element("thead", element("tr", *(element("th", one, scope="col") for one in heads))),
            element("tbody", *rows),
            class_="domains",
        ),
        rows=len(rows),
    )


def _map(number: int, table: ExpertsTable) -> Markup:
    """Filled in by ``experts.js``: of a mixture of 128 experts, a layer at a time is enough."""
    options = [
        element("option", f"layer {layer}", value=str(at)) for at, layer in enumerate(table.layers)
    ]
    return element(
        "figure",
        element(
            "figcaption",
            element("h3", "Load by domain and expert"),
            element(
                "label",
                element("span", "Layer", class_="unseen"),
                element("select", *options),
            ),
            element("span", class_="scale"),
        ),
        element("div", class_="map", tabindex="0", role="region", aria_label="Load of experts"),
        class_="experts",
        data_experts=str(number),
        hidden=True,
    )
