#!/usr/bin/env bash
# Run tests/e2e/test_hosts.py on every Megatron in a folder, each in the Python and PyTorch that it
# needs, and write down what passed. docs/hosts-matrix.md says how to make the folder.
#
#   CHECKOUTS=dir     a folder of Megatron-LM checkouts; their versions are read, not their names
#   WHEELS="0.19 …"   PyPI wheels to test besides (default: all that hold the training loop)
#   CACHE=dir         keeps environments, wheels and results (default: .hosts)
#   ENVIRONMENTS=…    environments to use as they are, "3.12=/path/to/python 3.10-torch2.4=…"
#   MATRIX=file       where the result goes (default: docs/hosts-matrix.md)
set -euo pipefail
CDPATH="" cd "$(dirname "${BASH_SOURCE[0]}")/.."
: "${CHECKOUTS:?give CHECKOUTS=dir, a folder of Megatron-LM checkouts}"
root=$PWD checkouts=$(realpath "$CHECKOUTS") cache=$(realpath -m "${CACHE:-.hosts}")
matrix=${MATRIX:-docs/hosts-matrix.md} python=${PYTHON:-python3}
results=$cache/results
rm -rf "$results"
mkdir -p "$results"
export PYTHONPATH=$root/src OMP_NUM_THREADS=1 TORCHINDUCTOR_COMPILE_THREADS=1

find_python() { # a command that starts this Python, with venv (a pyenv shim may start nothing)
  local candidate
  for candidate in "python$1" "${PYENV_ROOT:-${HOME:-}/.pyenv}/versions/$1".*/bin/python; do
    if "$candidate" -c 'import venv, ensurepip' >/dev/null 2>&1; then
      echo "$candidate"
      return
    fi
  done
  echo "no Python $1 with venv: neither python$1, nor among pyenv's versions, nor through uv" >&2
  return 1
}

install() { # INTERPRETER ARGUMENT... of pip install
  if command -v uv >/dev/null; then
    uv pip install --quiet --python "$@"
  else
    "$1" -m pip install --quiet "${@:2}"
  fi
}

environment() { # NAME REQUIREMENT... → the interpreter of an environment that has them
  local version=${1%%-*} given venv interpreter # of 3.10-torch2.4
  for given in ${ENVIRONMENTS:-}; do
    if [[ ${given%%=*} == "$1" ]]; then
      echo "${given#*=}"
      return
    fi
  done
  venv=$cache/python$1
  if [[ -f $venv/made-of && $(<"$venv/made-of") == "$*" ]]; then
    echo "$venv/bin/python"
    return
  fi
  echo "test_hosts: making $venv: ${*:2}" >&2
  rm -rf "$venv"
  if command -v uv >/dev/null; then
    uv venv --quiet --python "$version" "$venv" || return
  else
    interpreter=$(find_python "$version") && "$interpreter" -m venv "$venv" || return
  fi
  install "$venv/bin/python" pytest -e "$root" "${@:2}" || return
  echo "$*" >"$venv/made-of"
  echo "$venv/bin/python"
}

test_host() { # NAME FOLDER ENVIRONMENT REQUIREMENT...: its outcome is NAME.xml, or NAME.error
  local name=$1 folder=$2 interpreter
  git describe --always --dirty --exclude '*' >"$results/$name.commit" || echo unknown >"$results/$name.commit"
  if ! interpreter=$(environment "${@:3}" 2> >(tee "$results/$name.error" >&2)); then
    return
  fi
  if [[ $folder == wheel:* ]]; then
    local series=${folder#wheel:}
    folder=$cache/wheels/$series
    if ! install "$interpreter" --no-deps --upgrade --target "$folder" \
      "megatron-core==$series.*" 2> >(tee "$results/$name.error" >&2); then
      return
    fi
  fi
  rm -f "$results/$name.error"
  echo "test_hosts: $name in $interpreter"
  MEGATRON_LM_PATH=$folder PYTHONPATH=$PYTHONPATH:$folder \
    "$interpreter" -m pytest -q -p no:cacheprovider tests/e2e/test_hosts.py \
    --junit-xml="$results/$name.xml" >"$results/$name.log" 2>&1 ||
    echo "test_hosts: $name did not pass: $results/$name.log"
}

"$python" scripts/hosts_matrix.py plan "$checkouts" ${WHEELS+--wheels="$WHEELS"} >"$results/plan"
while read -r name folder environment requirements; do
  # shellcheck disable=SC2086  # a list
  test_host "$name" "$folder" "$environment" $requirements </dev/null
done <"$results/plan"
"$python" scripts/hosts_matrix.py report "$results" >"$matrix.new" && failed=0 || failed=$?
mv "$matrix.new" "$matrix"
echo "test_hosts: written to $matrix"
exit "$failed"
