#!/usr/bin/env bash
# What tpu_vm.sh asks of each host of a TPU, in the checkout it put there. Not for use by hand.
#
#   tpu_worker.sh prepare STORAGE     # mount it, link data/ and runs/ to it, make .venv
#   tpu_worker.sh start CONFIG ...    # `medkor run`, which goes on when the connection ends; one that runs is left alone
#   tpu_worker.sh follow LINE         # print the log from this line until the run has ended
#   tpu_worker.sh code                # "medkor-code running", or the exit code
#   tpu_worker.sh stop                # SIGTERM: the run saves and ends
set -euo pipefail
cd "$(dirname "$0")/.."
kept=$HOME/medkor-run # pid, code and log
mkdir -p "$kept"

is_running() { [ -s "$kept/pid" ] && grep -qz medkor "/proc/$(cat "$kept/pid")/cmdline" 2>/dev/null; }

environment() { [ "${EXTRAS:-}" = none ] || PYTHON=${PYTHON:-uv} source launch/environment.sh "${EXTRAS:-tpu}"; }

mount_storage() {
    local place=${MEDKOR_STORAGE_PLACE:-/mnt/medkor}
    sudo mkdir -p "$place"
    if ! mountpoint -q "$place"; then
        case $1 in
        gs://*)
            command -v gcsfuse >/dev/null || install_gcsfuse
            sudo gcsfuse --implicit-dirs --rename-dir-limit=100000 -o allow_other --uid="$(id -u)" --gid="$(id -g)" \
                "${1#gs://}" "$place"
            ;;
        [!/]*:/[!/]*)
            command -v mount.nfs >/dev/null || { sudo apt-get update -qq && sudo apt-get install -y -qq nfs-common; }
            sudo mount -t nfs -o hard,nconnect=4 "$1" "$place"
            sudo chown "$(id -u):$(id -g)" "$place"
            ;;
        *)
            echo "tpu_worker.sh: STORAGE=$1; expected gs://BUCKET or HOST:/EXPORT" >&2
            exit 2
            ;;
        esac
    fi
    for name in data runs; do
        if [ -d $name ] && [ ! -L $name ]; then
            echo "tpu_worker.sh: $PWD/$name is from a run without STORAGE; move it into the storage or away" >&2
            exit 2
        fi
        mkdir -p "$place/$name"
        ln -sfn "$place/$name" $name
    done
}

install_gcsfuse() {
    local key=/usr/share/keyrings/cloud.google.asc
    curl -fsSL https://packages.cloud.google.com/apt/doc/apt-key.gpg | sudo tee $key >/dev/null
    echo "deb [signed-by=$key] https://packages.cloud.google.com/apt gcsfuse-$(lsb_release -cs) main" |
        sudo tee /etc/apt/sources.list.d/gcsfuse.list >/dev/null
    sudo apt-get update -qq && sudo apt-get install -y -qq gcsfuse
}

case $1 in
prepare)
    if [ -s "$HOME/medkor-token" ]; then
        mkdir -p "$HOME/.cache/huggingface"
        mv "$HOME/medkor-token" "$HOME/.cache/huggingface/token"
    fi
    rm -f "$HOME/medkor-token"
    if is_running; then exit 0; fi
    if [ -n "$2" ]; then mount_storage "$2"; fi
    environment
    ;;
start)
    if is_running; then
        echo "medkor is running here already; it is followed"
        exit 0
    fi
    environment
    rm -f "$kept/code" "$kept/pid"
    # shellcheck disable=SC2016 # for the shell that outlives this one
    outlive='kept=$1 code=0; shift
        medkor run --config "$@" & echo $! >"$kept/pid"
        wait $! || code=$?
        echo $code >"$kept/code"'
    setsid bash -c "$outlive" medkor "$kept" "${@:2}" </dev/null >>"$kept/log" 2>&1 &
    until [ -s "$kept/pid" ] || [ -s "$kept/code" ]; do sleep 0.1; done
    ;;
follow)
    touch "$kept/log"
    if is_running; then
        tail -n "+$2" -F --pid="$(cat "$kept/pid")" "$kept/log" 2>/dev/null
    else
        tail -n "+$2" "$kept/log"
    fi
    ;;
code)
    if is_running; then
        echo "medkor-code running"
    else
        for _ in 1 2 3 4 5 6 7 8 9 10; do [ -s "$kept/code" ] || sleep 0.3; done # the shell around it may not have written it yet
        echo "medkor-code $(cat "$kept/code" 2>/dev/null || echo 137)"
    fi
    ;;
stop) if is_running; then kill -TERM "$(cat "$kept/pid")"; fi ;;
*)
    echo "tpu_worker.sh: $1 is none of prepare, start, follow, code, stop" >&2
    exit 2
    ;;
esac
