#!/usr/bin/env bash
# Make .venv with everything that the demo and the tests need; does nothing while it is up to date.
#
# The PyPI host, megatron-core >= 0.17, has wheels for Python 3.12 and 3.13: one is looked for as
# python3.12, python3.13, python3, among pyenv's versions, and through uv.
#
#   PYTHON=command    takes this Python instead
#   TORCH=requirement takes this PyTorch, 'torch==2.9.*', instead of what fits the machine
set -euo pipefail
CDPATH="" cd "$(dirname "${BASH_SOURCE[0]}")/.."

venv=.venv
stamp=$venv/.up-to-date
if [[ -f $stamp && ! pyproject.toml -nt $stamp ]]; then exit 0; fi

heart=""
trap '[[ -z $heart ]] || kill "$heart" 2>/dev/null; rm -rf "$venv/tmp"' EXIT
trap 'exit 130' INT # pip ends as if it had failed, which must not lead on to the next step
trap 'exit 143' TERM

say() { echo "bootstrap: $*"; }

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

accelerator() { # the name of one that this machine has
  if nvidia-smi --list-gpus >/dev/null 2>&1 || [[ -e /dev/nvidia0 ]]; then
    echo "an NVIDIA GPU"
  elif npu-smi info >/dev/null 2>&1 || [[ -e /dev/davinci0 ]]; then
    echo "an Ascend NPU"
  else
    return 1
  fi
}

cpu_build() { # the newest CPU build of PyTorch that pip is offered, 2.13.0+cpu, if the package takes it
  local oldest newest
  oldest=$(sed -n 's/.*"torch>=\([0-9.]*\).*/\1/p' pyproject.toml)
  newest=$("$venv/bin/python" -m pip index versions torch 2>/dev/null |
    grep -o '[0-9][0-9.]*+cpu' | sort -V | tail -n 1) || return
  [[ $(printf '%s\n' "$oldest" "$newest" | sort -V | head -n 1) == "$oldest" ]] && echo "$newest"
}

# On a terminal pip shows its own progress. In a log a line every now and then says that it goes on:
# pip's temporary files lie in the environment, so that its size counts what was fetched, too.
install() { # REQUIREMENT...
  local pip=("$venv/bin/python" -m pip install --disable-pip-version-check) code=0
  mkdir -p "$venv/tmp"
  if [[ -t 1 ]]; then
    TMPDIR=$PWD/$venv/tmp "${pip[@]}" "$@"
    return
  fi
  while sleep "${HEARTBEAT:-30}" >/dev/null 2>&1 && kill -0 $$ 2>/dev/null; do
    say "still installing, $SECONDS s so far; $venv holds $(size)"
  done &
  heart=$!
  TMPDIR=$PWD/$venv/tmp "${pip[@]}" --quiet "$@" || code=$?
  kill "$heart" 2>/dev/null || true
  wait "$heart" 2>/dev/null || true
  heart=""
  return "$code"
}

size() { du -sh "$venv" 2>/dev/null | cut -f1; }

install_torch() {
  local device build why
  if [[ -n ${TORCH:-} ]]; then
    say "PyTorch: $TORCH, as TORCH says"
    install "$TORCH"
    return
  fi
  if device=$(accelerator); then
    why="this machine has $device"
  elif build=$(cpu_build); then
    say "PyTorch: no GPU or NPU here, and the package index offers the CPU build $build: about 1 GB"
    if install "torch==$build"; then return; fi
    why="the CPU build $build could not be installed"
  else
    why="no GPU or NPU here, but the package index offers no CPU build (a version with +cpu)"
  fi
  say "PyTorch: $why: taking the default build; on Linux that is the one for CUDA, with NVIDIA's"
  say "libraries about 3 GB to fetch and 5 GB on disk, which takes some minutes"
  install "$(sed -n 's/.*"\(torch>=[^"]*\)".*/\1/p' pyproject.toml)"
}

if [[ -n ${PYTHON:-} ]] && ! fits "$PYTHON"; then
  echo "bootstrap: PYTHON=$PYTHON is not a Python 3.12 or 3.13 with venv and ensurepip" >&2
  exit 1
fi

# An environment whose making was interrupted is made anew.
if ! "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
  if [[ -n ${PYTHON:-} ]]; then python=$PYTHON; else python=$(find_python) || python=""; fi
  if [[ -n $python ]]; then
    say "1 of 3: making $venv from $("$python" --version) ($python)"
    "$python" -m venv --clear "$venv"
  elif command -v uv >/dev/null; then
    say "1 of 3: making $venv from uv's Python 3.12"
    rm -rf "$venv" # not every uv knows --clear
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
else
  say "1 of 3: $venv is there"
fi

if [[ -z ${TORCH:-} ]] && "$venv/bin/python" -m pip show --quiet torch 2>/dev/null; then
  say "2 of 3: PyTorch is there"
else
  say "2 of 3: installing PyTorch, the largest part by far"
  install_torch
fi
say "3 of 3: installing the package, megatron-core and what the demo and the tests need: about 1 GB"
install --editable '.[test]'
# Of it, LoRA takes a part that needs none of its dependencies; it has no wheel for Python 3.13.
if "$venv/bin/python" -c 'import sys; sys.exit(sys.version_info >= (3, 13))'; then
  install --no-deps megatron-bridge==0.6.2 || say "no megatron-bridge: the tests of LoRA are left out"
fi
rm -rf "$venv/tmp"
touch "$stamp"
say "ready after $SECONDS s: $venv holds $(size)"
