#!/usr/bin/env bash
# From raw texts and a Hugging Face model to a trained and evaluated Hugging Face model, small, on a
# CPU, in a few minutes. docs/journey.md explains each command.
#
#   scripts/journey.sh [TRAINING FLAGS]
#
# Everything is in the folder `journey`; remove it to begin again. From the root of a clone.
set -euo pipefail

if [[ -e journey ]]; then
  echo "$0: there is a folder journey already; remove it to begin again" >&2
  exit 2
fi

run() {
  printf '\n$ %s\n' "$*"
  "$@"
}

run python3 -m domain_pretrain.demo.journey journey
run domain-pretrain prepare journey/raw/general.jsonl --output journey/data/general --tokenizer journey/model --holdout 5%
run domain-pretrain prepare journey/raw/maths.jsonl --output journey/data/maths --tokenizer journey/model --holdout 5%
run domain-pretrain plan configs/journey/plan.yaml --output journey/plan
run domain-pretrain import journey/model journey/base
run domain-pretrain eval journey/base --config configs/journey/probes.yaml
run scripts/pretrain_gpu.sh configs/journey/train.env --domain-config configs/journey/probes.yaml "$@"
run domain-pretrain watch journey/run --once
run domain-pretrain report journey/run --html journey/report.html
run domain-pretrain eval journey/base journey/run --config configs/journey/probes.yaml
run domain-pretrain export journey/run journey/exported
