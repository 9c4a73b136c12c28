#!/usr/bin/env bash
# Train on Ascend NPUs with MindSpeed-LLM, one node or many: start the same command on every node.
#
#   MINDSPEED_LLM_PATH=/path/to/MindSpeed-LLM scripts/pretrain_npu.sh [--dry-run] ENV_FILE [FLAGS]
#
# docs/launch.md explains the env file. The environment and the last flags are those of
# MindSpeed-LLM's own examples (examples/mcore/*/pretrain_*_ptd.sh).
set -euo pipefail
# shellcheck source=scripts/lib_launch.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib_launch.sh"

if [[ -z ${MINDSPEED_LLM_PATH:-} ]]; then
  echo "$0: name a MindSpeed-LLM checkout: MINDSPEED_LLM_PATH=/path/to/MindSpeed-LLM" >&2
  exit 2
fi
SCRIPT=${SCRIPT:-$MINDSPEED_LLM_PATH/pretrain_gpt.py}

# CANN's own environment, where the shell does not have it yet.
if [[ -z ${ASCEND_TOOLKIT_HOME:-} && -f ${CANN_SET_ENV:=/usr/local/Ascend/ascend-toolkit/set_env.sh} ]]; then
  set +u # it reads variables that may be unset
  # shellcheck source=/dev/null
  source "$CANN_SET_ENV"
  set -u
fi
export CUDA_DEVICE_MAX_CONNECTIONS=1
export HCCL_CONNECT_TIMEOUT=${HCCL_CONNECT_TIMEOUT:-1800}
export HCCL_EXEC_TIMEOUT=${HCCL_EXEC_TIMEOUT:-3600}
export PYTORCH_NPU_ALLOC_CONF=${PYTORCH_NPU_ALLOC_CONF:-expandable_segments:True}
export TASK_QUEUE_ENABLE=${TASK_QUEUE_ENABLE:-2}
export NPU_ASD_ENABLE=${NPU_ASD_ENABLE:-0}
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}

launch "$@"
