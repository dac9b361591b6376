#!/usr/bin/env bash
# Any cloud that SkyPilot knows: launch/skypilot.yaml as a managed job, which is found a machine, moved and resumed by SkyPilot.
#
#   BUCKET=gs://mine ACCELERATORS=H100:8 launch/sky.sh CONFIG [--config.phase3.steps=100 ...]
#
# Settings, all environment variables:
#   BUCKET             gs://, s3://, ...: data/ and runs/ of a config are there (required)
#   ACCELERATORS       H100:8 (default), A100-80GB:4, L4:1, tpu-v5litepod-16, ...; NODES   of them (default: 1)
#   SPOT=0             no preemptible machines      INFRA   where, such as gcp/us-central1 (default: the cheapest)
#   NAME               of the job (default: medkor)      SKY_FLAGS   more of `sky jobs launch`
#   HF_TOKEN           for gated weights; goes as a secret
#   DRY_RUN=1          print the command, do nothing
# `sky jobs queue`, `sky jobs logs` and `sky jobs cancel` are SkyPilot's own.
source "$(dirname "${BASH_SOURCE[0]}")/arguments.sh"
config_travels
cd "$root"
: "${BUCKET:?sky.sh: set BUCKET to the bucket that holds data/ and runs/, such as gs://mine}"
accelerators=${ACCELERATORS:-H100:8}
case $accelerators in tpu-*) extras=tpu,embedded ;; *) extras=cuda,embedded ;; esac
if [ "${SPOT:-1}" = 0 ]; then spot=--no-use-spot; else spot=--use-spot; fi
read -ra more <<<"$spot ${INFRA:+--infra $INFRA} ${SKY_FLAGS:-}"
[ -z "${HF_TOKEN:-}" ] || more+=(--secret HF_TOKEN) # its value is taken from the environment
arguments=""
[ $# = 0 ] || arguments=$(printf '%q ' "$@")
give sky jobs launch --yes --name "${NAME:-medkor}" --gpus "$accelerators" --num-nodes "${NODES:-1}" "${more[@]}" \
    --env "CONFIG=$config" --env "ARGUMENTS=$arguments" --env "BUCKET=$BUCKET" --env "EXTRAS=${EXTRAS:-$extras}" \
    launch/skypilot.yaml
