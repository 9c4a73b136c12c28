#!/usr/bin/env bash
# Measure on a GPU all that waits for one, and write one page: docs/kernels.md#the-gpu-day.
#
#   scripts/gpu_day.sh [--wheels DIR] [--out DIR] [--piece NAME]... [--rehearse]
#
# Works without network, and leaves this Python as it is.
#
#   PYTHON=command   takes this Python instead of python3
#   COMMIT=hash      what is measured, where there is no git
set -euo pipefail
# It takes this process's place, so that a signal to the script reaches it.
exec "${PYTHON:-python3}" "$(dirname "${BASH_SOURCE[0]}")/../benchmarks/gpu_day/run.py" "$@"
