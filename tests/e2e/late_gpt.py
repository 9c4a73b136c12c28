"""A user's script that imports Megatron first and enables the plugin afterwards.

Up to 0.17 Megatron's ``initialize`` has bound ``validate_args`` by then; later ones are made to, so
that the run starts there, too, at whatever comes next.
"""

import os
import runpy
from pathlib import Path

from domain_pretrain.backends import cpu

cpu.install()

from megatron.training import arguments  # noqa: E402

original = arguments.validate_args

import domain_pretrain  # noqa: E402

domain_pretrain.enable()
arguments.validate_args = original

if __name__ == "__main__":  # saving a checkpoint may import the script in another process
    script = Path(os.environ.get("MEGATRON_LM_PATH", ""), "pretrain_gpt.py")
    if script.is_file():
        runpy.run_path(str(script), run_name="__main__")
    else:
        from domain_pretrain.hosts.gpt import entry as gpt

        gpt.main()
