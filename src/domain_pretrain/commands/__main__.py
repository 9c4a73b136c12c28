"""``python -m domain_pretrain.commands`` is ``domain-pretrain``."""

import sys

from domain_pretrain.commands.main import main

if __name__ == "__main__":
    sys.exit(main())
