"""Start Megatron's argument handling with the plugin, once for each case, in one process.

Reads a JSON list of ``{"words": [...], "env": {...}, "version": "..."}`` from standard input and
writes a list of ``{"code", "message"}``: the exit code (None where training could begin) and what
was printed to standard error.
"""

import contextlib
import io
import json
import os
import sys

import domain_pretrain

domain_pretrain.enable("cpu")

import megatron.core  # noqa: E402
from megatron.training import arguments  # noqa: E402

VERSION = megatron.core.__version__


def start(case: dict) -> dict:
    sys.argv = ["pretrain_gpt.py", *case["words"]]
    os.environ.update({"RANK": "0", "WORLD_SIZE": "1", **case.get("env", {})})
    megatron.core.__version__ = case.get("version", VERSION)
    errors, code = io.StringIO(), None
    with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(io.StringIO()):
        try:
            arguments.validate_args(arguments.parse_args())
        except SystemExit as exit:
            code = exit.code
    return {"code": code, "message": errors.getvalue()}


results = [start(case) for case in json.load(sys.stdin)]
print(json.dumps(results))
