#!/usr/bin/env bash
# Fetch, on a machine with network, the wheels that scripts/gpu_day.sh installs on one without.
#
#   scripts/gpu_wheels.sh DIR [REQUIREMENT...]
#
# DIR gets benchmarks/gpu_day/wheels.txt for Python 3.12 on x86-64 Linux, without what they depend
# on; REQUIREMENTs are fetched besides, for a machine that lacks more (matplotlib, psutil). Other
# versions of the same packages in DIR go.
set -euo pipefail

if [[ $# == 0 || $1 == -* ]]; then
  echo "usage: $0 DIR [REQUIREMENT...]" >&2
  exit 2
fi
wheels=$(realpath -m "$1")
if [[ -e $wheels && ! -d $wheels ]]; then
  echo "$0: $1 is a file; name a folder" >&2
  exit 2
fi
CDPATH="" cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=${PYTHON:-python3}

# pip takes a platform at its word: one for a newer glibc does not stand for the older ones.
platforms=()
for minor in 28 27 26 24 17; do platforms+=(--platform "manylinux_2_${minor}_x86_64"); done
platforms+=(--platform manylinux2014_x86_64)

mkdir -p "$wheels"
fetched=$(mktemp -d "$wheels/.fetched.XXXXXX")
trap 'rm -rf "$fetched"' EXIT
"$python" -m pip download --disable-pip-version-check --quiet --no-deps --only-binary=:all: \
  --python-version 3.12 --implementation cp --abi cp312 --abi abi3 --abi none "${platforms[@]}" \
  --dest "$fetched" --requirement benchmarks/gpu_day/wheels.txt "${@:2}"
# Two versions of a package could not be installed together.
for wheel in "$fetched"/*.whl; do
  name=${wheel##*/}
  rm -f "$wheels/${name%%-*}"-*.whl
  mv "$wheel" "$wheels"
done
echo "gpu_wheels: $(du -sh "$wheels" | cut -f1) in $1"
