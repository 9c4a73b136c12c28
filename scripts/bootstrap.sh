#!/usr/bin/env bash
# Make .venv with everything that the demo and the tests need; does nothing while it is up to date.
#
# The PyPI host, megatron-core >= 0.17, has wheels for Python 3.12 and 3.13: one is looked for as
# python3.12, python3.13, python3, among pyenv's versions, and through uv. $PYTHON names another.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

venv=.venv
stamp=$venv/.up-to-date
if [[ -f $stamp && ! pyproject.toml -nt $stamp ]]; then exit 0; fi

fits() { # a command that starts such a Python (a pyenv shim may exist and start nothing)
  "$1" -c 'import sys, venv, ensurepip; sys.exit(not (3, 12) <= sys.version_info < (3, 14))' >/dev/null 2>&1
}

find_python() {
  local candidate
  for candidate in python3.12 python3.13 python3 \
    "${PYENV_ROOT:-${HOME:-}/.pyenv}"/versions/3.1[23].*/bin/python; do
    if fits "$candidate"; then
      echo "$candidate"
      return
    fi
  done
  return 1
}

if [[ -n ${PYTHON:-} ]] && ! fits "$PYTHON"; then
  echo "bootstrap: PYTHON=$PYTHON is not a Python 3.12 or 3.13 with venv and ensurepip" >&2
  exit 1
fi

# An environment whose making was interrupted is made anew.
if ! "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
  if [[ -n ${PYTHON:-} ]]; then python=$PYTHON; else python=$(find_python) || python=""; fi
  if [[ -n $python ]]; then
    echo "bootstrap: $venv from $("$python" --version) ($python)"
    "$python" -m venv --clear "$venv"
  elif command -v uv >/dev/null; then
    echo "bootstrap: $venv from uv's Python 3.12"
    rm -rf "$venv"  # not every uv knows --clear
    uv venv --quiet --seed --python 3.12 "$venv"
  else
    cat >&2 <<'MESSAGE'
bootstrap: no Python 3.12 or 3.13 found, which megatron-core from PyPI needs.
Looked for: python3.12, python3.13, python3, pyenv's versions, uv.
Install one of them, for example:
  apt-get install python3.12 python3.12-venv | pyenv install 3.12 | pip install uv
or name an interpreter: PYTHON=/path/to/python3.12 make test
MESSAGE
    exit 1
  fi
fi

echo "bootstrap: installing (the first time this fetches PyTorch, some gigabytes) ..."
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check --editable '.[test]'
touch "$stamp"
echo "bootstrap: ready"
