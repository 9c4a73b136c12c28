"""``docs/hosts.md``, made from the tables that the plugin itself uses.

``python -m domain_pretrain.hosts.page > docs/hosts.md``
"""

from __future__ import annotations

import re
import sys

from domain_pretrain.hosts.experts import EXPERT_SEAMS
from domain_pretrain.hosts.markdown import table
from domain_pretrain.hosts.megatron import SEAMS
from domain_pretrain.hosts.support import EVERY_REFUSAL
from domain_pretrain.hosts.versions import HOST_VERSIONS, OLDEST_BUILT_IN, VERSIONS

PAGE = """\
<!-- Made by src/domain_pretrain/hosts/page.py; docs/extending.md says how. -->
# Supported hosts

{versions}

A checkout runs its own `pretrain_gpt.py`, a wheel from PyPI the built-in GPT entry; either runs
your own script. Wheels before {built_in} contain no training loop. Versions within
`{range}` are supported; any other is refused, unless `--allow-unknown-host` is given and every
seam fits.

Every seam was looked up in the sources of the second column. `make hosts` trains with each version
in the Python and PyTorch of the last two: [what passed](hosts-matrix.md).

```bash
domain-pretrain doctor                              # this machine, and the Megatron installed
domain-pretrain doctor --host /path/to/Megatron-LM  # a checkout; read, not imported
```

`doctor` ends with `fit`, or with exit code 1 and the reason.

## Seams

Every place where the plugin hooks into Megatron. All seams are checked before the first one is
applied; one that does not fit stops the run at start-up. A wrapper always calls the original, and
passes on what it does not know.

{seams}

## Refused with channel loss

A run that would give wrong numbers ends before training, with the reason:

{refusals}
"""


def render() -> str:
    """The page."""
    versions = (
        (
            row.series + (" (main)" if row is VERSIONS[-1] else ""),
            ", ".join(row.looked_up),
            "checkout, wheel" if row.wheel else "checkout",
            row.python.replace(">=", "≥ "),
            row.tested_python,
            ", ".join(f"`{requirement}`" for requirement in row.requirements),
        )
        for row in VERSIONS
    )
    seams = (
        (seam.name, f"`{seam.target}`", _names(seam.parameters), _with_code(seam.why))
        for seam in SEAMS + EXPERT_SEAMS
    )
    refusals = ((_with_code(r.flags), _with_code(r.why)) for r in EVERY_REFUSAL)
    return PAGE.format(
        built_in=".".join(map(str, OLDEST_BUILT_IN)),
        range=HOST_VERSIONS,
        versions=table(
            ("megatron.core", "seams read in", "from", "needs Python", "tested with", "and"),
            versions,
        ),
        seams=table(("seam", "target", "parameters bound by name", "why there"), seams),
        refusals=table(("flags", "because"), refusals),
    )


def _names(parameters: tuple[str, ...]) -> str:
    return ", ".join(f"`{parameter}`" for parameter in parameters) or "–"


def _with_code(text: str) -> str:
    """Flags and identifiers as code; unmarked, ``__main__`` would be set in bold."""
    return re.sub(r"--[a-z][\w-]*|\w*_\w*(?:\.py)?", r"`\g<0>`", text)


if __name__ == "__main__":
    sys.stdout.buffer.write(render().encode())  # whatever the locale
