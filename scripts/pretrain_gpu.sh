#!/usr/bin/env bash
# Train on GPUs, one node or many: start the same command on every node.
#
#   scripts/pretrain_gpu.sh [--dry-run] ENV_FILE [TRAINING FLAGS]
#
# docs/launch.md explains the env file. $MEGATRON_LM_PATH names a Megatron-LM checkout, whose
# unmodified pretrain_gpt.py then runs; without it, the built-in script on megatron-core's wheel.
set -euo pipefail
# shellcheck source=scripts/lib_launch.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib_launch.sh"

if [[ -n ${MEGATRON_LM_PATH:-} ]]; then
  SCRIPT=${SCRIPT:-$MEGATRON_LM_PATH/pretrain_gpt.py}
fi
# Lets a layer's communication start before the computation that hides it (not on Blackwell).
export CUDA_DEVICE_MAX_CONNECTIONS=${CUDA_DEVICE_MAX_CONNECTIONS:-1}
export PYTORCH_CUDA_ALLOC_CONF=${PYTORCH_CUDA_ALLOC_CONF:-expandable_segments:True}
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}

launch "$@"
