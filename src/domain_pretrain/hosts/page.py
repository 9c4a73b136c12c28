"""``docs/hosts.md``, made of the tables that the plugin itself runs by.

``python -m domain_pretrain.hosts.page > docs/hosts.md``
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from domain_pretrain.__main__ import OLDEST_BUILT_IN
from domain_pretrain.hosts.megatron import SEAMS
from domain_pretrain.hosts.support import HOST_VERSIONS, REFUSALS

# Sources in which every seam was looked up; 0.20.0 is the development branch.
LOOKED_UP = (
    *("0.12.3", "0.13.1", "0.14.0", "0.15.3", "0.16.1"),
    *("0.17.1", "0.18.2", "0.19.1", "0.19.2", "0.20.0"),
)

PAGE = """\
<!-- Made by src/domain_pretrain/hosts/page.py; CONTRIBUTING.md says how. -->
# Supported hosts

| host | Python | script |
|---|---|---|
| `megatron-core` from PyPI, {built_in} or newer | ≥ 3.12 | the built-in GPT entry, or your own |
| a Megatron-LM checkout, 0.12 to main | ≥ 3.10 | its `pretrain_gpt.py`, or your own |

The wheels before {built_in} hold no training loop. A `megatron.core` within `{versions}` is
supported; any other is refused, unless `--allow-unknown-host` is given and every seam fits. All
seams were looked up in the sources of {looked_up}.

```bash
domain-pretrain doctor                              # this machine, and the Megatron installed
domain-pretrain doctor --host /path/to/Megatron-LM  # a checkout; read, not imported
```

`doctor` ends with `fit`, or with exit code 1 and the reason.

## Seams

All that the plugin holds on to. Every seam is checked before the first one is applied; one that
does not fit stops the run at start-up. A wrapper always calls the original, and passes on what it
does not know.

{seams}

## Refused with channel loss

What would give wrong numbers ends before training, with the reason:

{refusals}
"""


def render() -> str:
    """The page."""
    seams = (
        (seam.name, f"`{seam.target}`", _names(seam.parameters), _with_code(seam.why))
        for seam in SEAMS
    )
    refusals = ((_with_code(r.flags), _with_code(r.why)) for r in REFUSALS)
    return PAGE.format(
        built_in=".".join(map(str, OLDEST_BUILT_IN)),
        versions=HOST_VERSIONS,
        looked_up=", ".join(LOOKED_UP),
        seams=_table(("seam", "target", "parameters bound by name", "why there"), seams),
        refusals=_table(("flags", "because"), refusals),
    )


def _names(parameters: tuple[str, ...]) -> str:
    return ", ".join(f"`{parameter}`" for parameter in parameters) or "–"


def _with_code(text: str) -> str:
    """Flags and identifiers as code; unmarked, ``__main__`` would be set in bold."""
    return re.sub(r"--[a-z][\w-]*|\w*_\w*", r"`\g<0>`", text)


def _table(heads: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    head, *body = (f"| {' | '.join(cells)} |" for cells in (heads, *rows))
    return "\n".join((head, "|---" * len(heads) + "|", *body))


if __name__ == "__main__":
    print(render(), end="")
