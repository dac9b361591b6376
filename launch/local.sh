#!/usr/bin/env bash
# One host: the CPU, every GPU, or every TPU chip of it.
#
#   launch/local.sh CONFIG [--config.phase3.steps=100 ...]     # whatever `medkor run` takes may follow
#   PROCESSES=2 launch/local.sh CONFIG                         # several processes on loopback, GPUs divided among them
#   PROCESSES=2 DEVICES=2 launch/local.sh CONFIG               # on the CPU: two fake devices in each process
#
# Runs in this checkout: `data/` and `runs/` of a config are those beside launch/. Settings, all environment variables:
#   EXTRAS             what .venv is made with (default: cuda, tpu or nothing, by what the host has, and the embedded
#                      model); EXTRAS=none makes nothing and takes the `medkor` on PATH
#   MEDKOR_COORDINATOR HOST:PORT where several processes meet, this port and the next (default: free ones of 127.0.0.1)
#   LOGS               directory for what processes other than 0 print (default: runs/logs/...)
#   GRACE              seconds the others have once a process has failed, before they are stopped (default: 90)
#   DRY_RUN=1          print the commands, do nothing
# One SIGTERM or Ctrl-C is handed on to every process: all save and end; the same command goes on. The exit code is the
# worst of all: 0 done, 1 failed, 2 bad config, 3 a gate stayed closed, 143 stopped and saved.
source "$(dirname "${BASH_SOURCE[0]}")/arguments.sh"
cd "$root"
processes=${PROCESSES:-1}
devices=${DEVICES:-}
for number in "$processes" "${devices:-1}"; do
    [[ $number =~ ^[1-9][0-9]*$ ]] || {
        echo "local.sh: PROCESSES=$processes DEVICES=$devices: expected whole numbers above 0" >&2
        exit 2
    }
done

accelerator=cpu
gpus=()
if [ -n "$devices" ] || [ "${JAX_PLATFORMS:-}" = cpu ]; then
    export JAX_PLATFORMS=cpu
elif [ -n "${CUDA_VISIBLE_DEVICES:-}" ]; then
    accelerator=cuda
    IFS=, read -ra gpus <<<"$CUDA_VISIBLE_DEVICES"
elif count=$(nvidia-smi --query-gpu=index --format=csv,noheader 2>/dev/null | wc -l) && [ "$count" -gt 0 ]; then
    accelerator=cuda
    for ((i = 0; i < count; i++)); do gpus+=("$i"); done
elif [ -e /dev/accel0 ] || { [ -e /dev/vfio/0 ] && [ -n "${TPU_WORKER_ID:-}${TPU_ACCELERATOR_TYPE:-}${PJRT_DEVICE:-}" ]; }; then
    accelerator=tpu
fi
if [ "$processes" -gt 1 ]; then
    [ $accelerator != tpu ] || {
        echo "local.sh: PROCESSES=$processes on a TPU host, whose chips belong to one process; leave PROCESSES out" >&2
        exit 2
    }
    [ $((${#gpus[@]} % processes)) = 0 ] || {
        echo "local.sh: ${#gpus[@]} GPUs are not divided evenly by PROCESSES=$processes" >&2
        exit 2
    }
fi
if [ -n "$devices" ]; then
    export XLA_FLAGS="${XLA_FLAGS:+$XLA_FLAGS }--xla_force_host_platform_device_count=$devices"
fi

extras=${EXTRAS:-embedded$([ $accelerator = cpu ] || echo ",$accelerator")}
if [ "$extras" != none ]; then
    echo "+ source launch/environment.sh $extras"
    is_dry || source launch/environment.sh "$extras"
fi

if [ "$processes" = 1 ]; then
    is_dry || exec medkor run --config "$config" "$@"
    give env ${JAX_PLATFORMS:+"JAX_PLATFORMS=$JAX_PLATFORMS"} ${XLA_FLAGS:+"XLA_FLAGS=$XLA_FLAGS"} \
        medkor run --config "$config" "$@"
    exit
fi

# The port and the one after it are medkor's.
free_port() {
    local python
    python=$(command -v python || command -v python3)
    "$python" - <<'PYTHON'
import socket

while True:
    with socket.socket() as first, socket.socket() as second:
        first.bind(("127.0.0.1", 0))
        port = first.getsockname()[1]
        try:
            second.bind(("127.0.0.1", port + 1))
        except (OSError, OverflowError):
            continue
    print(port)
    break
PYTHON
}
coordinator=${MEDKOR_COORDINATOR:-127.0.0.1:$(free_port)}
logs=${LOGS:-runs/logs/$(date +%Y%m%d-%H%M%S)-$$}
share=$((${#gpus[@]} / processes))
is_dry || mkdir -p "$logs"
echo "$processes processes meet at $coordinator; what processes 1 to $((processes - 1)) print is in $logs"

# From here on a signal is handed on, also one that comes while processes are being started.
told=
pids=()
# shellcheck disable=SC2329 # the trap below calls it
hand_on() {
    told=1
    kill -TERM "${pids[@]}" 2>/dev/null || true
}
trap hand_on TERM INT HUP
trap 'kill -KILL "${pids[@]}" 2>/dev/null || true' EXIT

# Each process is a job with a group of its own: Ctrl-C reaches it once, by us, and not a second time from the terminal.
set -m
for ((i = 0; i < processes; i++)); do
    settings=("MEDKOR_COORDINATOR=$coordinator" "MEDKOR_PROCESSES=$processes" "MEDKOR_PROCESS_ID=$i")
    if [ "$share" -gt 0 ]; then
        mine=$(IFS=, && echo "${gpus[*]:i*share:share}")
        settings+=("CUDA_VISIBLE_DEVICES=$mine")
    else
        settings+=("JAX_PLATFORMS=cpu" ${XLA_FLAGS:+"XLA_FLAGS=$XLA_FLAGS"})
    fi
    if is_dry; then
        give env "${settings[@]}" medkor run --config "$config" "$@"
    elif [ "$i" = 0 ]; then
        env "${settings[@]}" medkor run --config "$config" "$@" </dev/null &
        pids+=($!)
    else
        env "${settings[@]}" medkor run --config "$config" "$@" </dev/null >"$logs/process-$i.log" 2>&1 &
        pids+=($!)
    fi
    [ -z "$told" ] || kill -TERM $! 2>/dev/null || true
done
set +m
! is_dry || exit 0

# Ends when all have; once one has failed, the others have GRACE seconds to end by themselves.
codes=()
failed_at=
while [ "${#codes[@]}" -lt "$processes" ]; do
    sleep 0.3 || true
    running=" $(jobs -pr | tr '\n' ' ')"
    for ((i = 0; i < processes; i++)); do
        [ -z "${codes[i]:-}" ] && [[ $running != *" ${pids[i]} "* ]] || continue
        code=0
        wait "${pids[i]}" || code=$?
        codes[i]=$code
        if [ "$code" != 0 ] && [ "$code" != 143 ]; then
            echo "local.sh: process $i ended with exit code $code" >&2
            [ "$i" = 0 ] || tail -n 20 "$logs/process-$i.log" >&2
            failed_at=${failed_at:-$SECONDS}
        fi
    done
    if [ -n "$failed_at" ] && [ $((SECONDS - failed_at)) -ge "${GRACE:-90}" ]; then
        for ((i = 0; i < processes; i++)); do
            [ -n "${codes[i]:-}" ] || echo "local.sh: process $i has not ended ${GRACE:-90} s after the failure; it is killed" >&2
            [ -n "${codes[i]:-}" ] || kill -KILL "${pids[i]}" 2>/dev/null || true
        done
    fi
done
trap - EXIT
exit "$(worst "${codes[@]}")"
