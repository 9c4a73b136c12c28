"""The built-in GPT entry as a script: ``torchrun [...] scripts/pretrain_gpt.py <flags>``."""

from domain_pretrain.__main__ import main

if __name__ == "__main__":
    main()
