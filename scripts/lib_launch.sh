# What pretrain_gpu.sh and pretrain_npu.sh share; they source it and call `launch`.
# shellcheck shell=bash

usage() {
  cat >&2 <<MESSAGE
usage: $0 [--dry-run] ENV_FILE [TRAINING FLAGS]
  ENV_FILE        the run's model, data and layout: see configs/launch/*.env and docs/launch.md
  --dry-run       print the command, and start nothing
  TRAINING FLAGS  come last, and so win over those of ENV_FILE
MESSAGE
  exit 2
}

# Print a command as it could be typed, a flag a line.
print_command() {
  local word
  printf '%q' "$1"
  for word in "${@:2}"; do
    if [[ $word == --* ]]; then printf ' \\\n  %q' "$word"; else printf ' %q' "$word"; fi
  done
  printf '\n'
}

# Print the first of these variables that is set, which must be a whole number.
#   number LEAST MOST NAME...   MOST: '' for none
number() {
  local name value range="from $1 on" instead=
  if [[ -n $2 ]]; then range="from $1 to $2"; fi
  for name in "${@:3}"; do
    value=${!name:-}
    if [[ -z $value ]]; then continue; fi
    if [[ ! $value =~ ^(0|[1-9][0-9]{0,8})$ || $value -lt $1 || $value -gt ${2:-$value} ]]; then
      if [[ $name != "$3" ]]; then instead="; set $3, which comes before it"; fi
      echo "$0: $name must be a whole number $range, got $value$instead" >&2
      exit 2
    fi
    echo "$value"
    return
  done
}

# Check the run that an env file describes, then become torchrun.
launch() {
  local dry_run=no
  if [[ ${1:-} == --dry-run ]]; then
    dry_run=yes
    shift
  fi
  if [[ ${1:---} == -* ]]; then usage; fi
  if [[ ! -f $1 ]]; then
    echo "$0: no env file $1" >&2
    exit 2
  fi
  local env_file=$1 name
  if [[ $env_file != */* ]]; then env_file=./$env_file; fi # or PATH would be searched first
  # A command in it that fails ends this script, and so does a last one that is merely false.
  trap 'echo "$0: a command in the env file failed, or its last one is false: where that is a condition" \
    "(… && …), write if … then … fi" >&2' EXIT
  # shellcheck source=/dev/null
  source "$env_file"
  trap - EXIT
  shift
  for name in NODES DEVICES_PER_NODE RUN_DIR FLAGS; do
    if [[ -z ${!name:-} ]]; then
      echo "$0: the env file does not set $name" >&2
      exit 2
    fi
  done
  : "${MAX_RESTARTS:=3}" "${JOIN_TIMEOUT:=600}"
  NODES=$(number 1 '' NODES)
  DEVICES_PER_NODE=$(number 1 '' DEVICES_PER_NODE)
  MAX_RESTARTS=$(number 0 '' MAX_RESTARTS)
  JOIN_TIMEOUT=$(number 1 '' JOIN_TIMEOUT)
  if [[ $RUN_DIR == -* ]]; then RUN_DIR=./$RUN_DIR; fi # or it would be read as a flag

  local python=${PYTHON:-python3}
  local train=()
  if [[ -n ${SCRIPT:-} ]]; then train+=("$SCRIPT"); fi
  train+=("${FLAGS[@]}")
  # Before the plan, which may go on from another run.
  if [[ -n ${BASE_CHECKPOINT:-} ]]; then
    train+=(--pretrained-checkpoint "$BASE_CHECKPOINT")
  fi
  if [[ -n ${PLAN:-} ]]; then
    local words plan
    words=$("$python" -m domain_pretrain.planning "$PLAN") # what is no plan ends the start here
    mapfile -t plan <<<"$words"
    train+=("${plan[@]}")
  fi
  train+=(
    --save "$RUN_DIR/checkpoints"
    --load "$RUN_DIR/checkpoints" # as soon as there are some
    --tensorboard-dir "$RUN_DIR/tensorboard"
    --domain-log-dir "$RUN_DIR"
    --data-cache-path "$RUN_DIR/data-cache"
    "$@"
  )

  # Who this node is and where the nodes meet, as the user, SLURM or Kubeflow tells.
  local node_address=${NODE_ADDR:-${SLURMD_NODENAME:-}}
  local log_dir=$RUN_DIR/logs/${node_address:-$(hostname)}
  # The same on every node, and another job's is another: two may share a first node.
  local job=${JOB_ID:-${SLURM_JOB_ID:-$(basename "$RUN_DIR")}}
  job=${job//\//_} # torchrun names a folder by it
  local node_rank address port
  if [[ $NODES == 1 ]]; then
    # Whatever is told: that is of the job around it, in which each node may have a run of its own.
    node_rank=0
    address=127.0.0.1
    node_address=${node_address:-127.0.0.1}
    port=0 # any that is free: nobody else has to know it, and another run here may have its own
  else
    node_rank=$(number 0 $((NODES - 1)) NODE_RANK SLURM_NODEID PET_NODE_RANK)
    address=${MASTER_ADDR:-${PET_MASTER_ADDR:-}}
    port=$(number 1 65535 MASTER_PORT PET_MASTER_PORT)
    port=${port:-$((20000 + $(cksum <<<"$job" | cut -d' ' -f1) % 10000))}
  fi
  local rendezvous=join_timeout=$JOIN_TIMEOUT
  if [[ -n $node_rank ]]; then
    rendezvous+=,is_host=$((node_rank == 0))
  fi

  local last=$((DEVICES_PER_NODE - 1))
  local torchrun=(
    "$python" -m domain_pretrain.launch.agent
    "--nnodes=$NODES"
    "--nproc-per-node=$DEVICES_PER_NODE"
    --rdzv-backend=c10d
    "--rdzv-endpoint=${address:-MASTER_ADDR}:$port"
    "--rdzv-id=$job"
    "--rdzv-conf=$rendezvous"
    "--max-restarts=$MAX_RESTARTS"
    # All output into files by rank; the first and the last process, where Megatron prints, also here.
    "--log-dir=$log_dir"
    --redirects=3
    "--tee=0:3$([[ $last -gt 0 ]] && echo ",$last:3")"
  )
  if [[ -n $node_address ]]; then torchrun+=("--local-addr=$node_address"); fi
  torchrun+=(-m domain_pretrain.launch)

  if [[ $dry_run == yes ]]; then
    print_command "${torchrun[@]}" "${train[@]}"
    return
  fi
  if [[ -z $address ]]; then
    echo "$0: $NODES nodes need to know the first one: MASTER_ADDR=its name or address" >&2
    exit 2
  fi

  local preflight=("$python" -m domain_pretrain.commands preflight
    --nodes "$NODES" --devices-per-node "$DEVICES_PER_NODE")
  if [[ ${node_rank:-0} != 0 ]]; then preflight+=(--quiet); fi
  "${preflight[@]}" -- "${train[@]}"

  # A Hugging Face model as --pretrained-checkpoint is imported by the first node, once.
  local word
  for word in "${train[@]}"; do
    if [[ ! -f ${word#*=}/config.json ]]; then continue; fi
    "$python" -m domain_pretrain.launch.base_model --node-rank "$node_rank" \
      --address "$address" --patience "$JOIN_TIMEOUT" -- "${train[@]}"
    break
  done

  mkdir -p "$log_dir"
  exec "${torchrun[@]}" "${train[@]}" # its exit code is that of the training
}
