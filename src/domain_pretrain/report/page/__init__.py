"""One HTML file of a run, or of several: curves to hover over, alarms, checks, tables; no network.

``write`` puts it together: ``sections``, ``tables``, ``evaluations`` and ``experts`` make, of
common ``parts``, what can be read without a script, in ``markup`` in which no text can become an
element; ``numbers`` packs (``packing``) what the curves are drawn from. The rest is for the
browser: ``page.html``, ``page.css``, ``decode.js`` unpacks, ``charts.js`` draws with uPlot,
``experts.js`` the load of experts, ``page.js`` turns switches into drawings.

Imported by ``commands.report`` and ``demo``.
"""
