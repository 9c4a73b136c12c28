#!/usr/bin/env bash
# Measure on a GPU all that waits for one, and write one page: docs/kernels.md#the-gpu-day.
#
#   scripts/gpu_day.sh [--wheels DIR] [--out DIR] [--piece NAME]... [--rehearse]
#
# Works without network, and leaves this Python as it is: the wheels that scripts/gpu_wheels.sh
# fetched are installed into a folder of their own, which goes at the end.
#
#   PYTHON=command   takes this Python instead of python3
#   COMMIT=hash      what is measured, where there is no git
set -euo pipefail
python=${PYTHON:-python3} wheels=""

arguments=("$@")
while [[ $# -gt 0 ]]; do
  case $1 in
    --wheels=*) wheels=${1#*=} ;;
    --wheels)
      wheels=${2:-}
      if [[ -z $wheels || $wheels == -* ]]; then
        echo "$0: --wheels: name the folder that scripts/gpu_wheels.sh filled" >&2
        exit 2
      fi
      shift
      ;;
  esac
  shift
done

root=$(realpath "$(dirname "${BASH_SOURCE[0]}")/..")
if [[ -n $wheels ]]; then
  if ! compgen -G "$wheels/*.whl" >/dev/null; then
    echo "$0: --wheels $wheels: no wheel there; fill it with scripts/gpu_wheels.sh $wheels" >&2
    exit 2
  fi
  site=$(mktemp -d)
  trap 'rm -rf "$site"' EXIT
  "$python" -m pip install --disable-pip-version-check --quiet --no-index --no-deps --no-compile \
    --no-cache-dir --find-links "$wheels" --target "$site" "$wheels"/*.whl
  export PYTHONPATH=$site${PYTHONPATH:+:$PYTHONPATH}
fi
"$python" "$root/benchmarks/gpu_day/needs.py"
"$python" "$root/benchmarks/gpu_day/run.py" "${arguments[@]}"
