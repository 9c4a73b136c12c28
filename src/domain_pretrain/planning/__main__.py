"""``python -m domain_pretrain.planning PLAN.json``: a plan's flags, a word a line, for scripts."""

from __future__ import annotations

import sys

from domain_pretrain.errors import ConfigError
from domain_pretrain.planning.output import flags_of


def main(words: list[str]) -> int:
    """Print them; 2 where there are none."""
    try:
        print("\n".join(word for path in words for word in flags_of(path)))
    except ConfigError as error:
        print(f"plan: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
