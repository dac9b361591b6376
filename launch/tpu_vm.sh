#!/usr/bin/env bash
# A Cloud TPU VM or slice: made or reused, given this checkout, run on all its hosts, followed, resumed after preemption.
#
#   ZONE=us-central1-a TYPE=v5litepod-16 STORAGE=gs://BUCKET launch/tpu_vm.sh CONFIG [--config.phase3.steps=100 ...]
#
# Settings, all environment variables:
#   ZONE               where (required)      PROJECT   default: gcloud's own
#   NAME               of the TPU and of its queued resource (default: medkor); one that exists is reused
#   TYPE               accelerator type (default: v5litepod-8)      RUNTIME   its software (default: by TYPE)
#   SPOT=1             preemptible: cheaper; taken away, it is made again and the run goes on
#   CREATE_FLAGS       more of `gcloud compute tpus queued-resources create`, such as "--reserved --network=N"
#   SSH_FLAGS          more of `gcloud compute tpus tpu-vm ssh` and `scp`, such as "--internal-ip"
#   STORAGE            gs://BUCKET (made with a hierarchical namespace) or HOST:/EXPORT (NFS, such as Filestore), mounted
#                      on every host; `data/` and `runs/` of a config are there. Required for more than one host; without
#                      it a run is on the machine's own disk, and is lost with it
#   HF_TOKEN           for gated weights; travels as a file, never in a command
#   RESTARTS           how often a machine that was lost is replaced (default: 100)
#   DELETE=1           delete the machine once the run has ended      STOP=1   only: stop a run, which saves
#   DRY_RUN=1          print the commands, do nothing
# The run does not hang on this script: ended with Ctrl-C it only stops following, and the same command follows again.
# Exit codes are those of `medkor run`, the worst of all hosts.
source "$(dirname "${BASH_SOURCE[0]}")/arguments.sh"
config_travels
cd "$root"
: "${ZONE:?tpu_vm.sh: set ZONE to where the TPU is or shall be, such as us-central1-a}"
name=${NAME:-medkor} type=${TYPE:-v5litepod-8} pause=${PAUSE:-20}
case $type in
v5litepod-*) runtime=v2-alpha-tpuv5-lite ;;
v5p-*) runtime=v2-alpha-tpuv5 ;;
v6e-*) runtime=v2-alpha-tpuv6e ;;
v[234]-*) runtime=tpu-ubuntu2204-base ;;
*)
    runtime=${RUNTIME:?tpu_vm.sh: no software is known for this TYPE; set RUNTIME (gcloud compute tpus tpu-vm versions list)}
    ;;
esac
runtime=${RUNTIME:-$runtime}
# Never empty, as bash before 4.4 takes an empty array for an unset one.
read -ra where <<<"--zone=$ZONE --quiet ${PROJECT:+--project=$PROJECT}"
read -ra reach <<<"${where[*]} ${SSH_FLAGS:-}"
read -ra wanted <<<"--accelerator-type=$type --runtime-version=$runtime $([ "${SPOT:-}" != 1 ] || echo --spot) ${CREATE_FLAGS:-}"
lost=75 # no exit code of medkor: the machine went away, or could not be set up
bundle=$(mktemp -d)
trap 'rm -rf "$bundle"' EXIT

on() { # on WORKER COMMAND: on one worker, or on all
    give gcloud compute tpus tpu-vm ssh "$name" "${reach[@]}" "--worker=$1" "--command=$2"
}

worker() { # worker WORKER VERB...: what tpu_worker.sh does there
    local place=$1
    shift
    on "$place" "bash medkor/launch/tpu_worker.sh$(printf ' %q' "$@")"
}

of_node() { gcloud compute tpus tpu-vm describe "$name" "${where[@]}" "--format=value($1)"; }
of_queue() { gcloud compute tpus queued-resources describe "$name" "${where[@]}" "--format=value($1)"; }
node_state() { of_node state 2>/dev/null || true; }
queue_state() { of_queue state.state 2>/dev/null || true; }
n_hosts() { of_node 'networkEndpoints[].ipAddress' | tr ';' '\n' | wc -l; }
request() { give gcloud compute tpus queued-resources create "$name" "--node-id=$name" "${where[@]}" "${wanted[@]}"; }
delete() { give gcloud compute tpus queued-resources delete "$name" "${where[@]}" --force; }

# Returns with a machine that is READY: the one there is, one that is awaited, or a new one.
ensure() {
    local node queue
    while :; do
        node=$(node_state) queue=$(queue_state)
        case $node/$queue in
        READY/*) return ;;
        STOPPED/*) give gcloud compute tpus tpu-vm start "$name" "${where[@]}" ;;
        PREEMPTED/ | TERMINATED/) give gcloud compute tpus tpu-vm delete "$name" "${where[@]}" ;;
        PREEMPTED/* | TERMINATED/* | */SUSPENDED | */FAILED) delete ;;
        /) request ;;
        *) echo "tpu_vm.sh: $name is ${node:-not there yet}, its request ${queue:-none}; waiting" ;;
        esac
        sleep "$pause"
    done
}

# Puts this checkout (with what is not committed, without what git ignores) and its environment on every host.
prepare() {
    if [ "$hosts" -gt 1 ] && [ -z "${STORAGE:-}" ]; then
        echo "tpu_vm.sh: $name has $hosts hosts, and all must see one run directory: set STORAGE=gs://BUCKET or HOST:/EXPORT" >&2
        exit 2
    fi
    [ -n "${STORAGE:-}" ] || echo "tpu_vm.sh: no STORAGE: the run is on the disk of $name, and lost with it" >&2
    install -m 600 /dev/null "$bundle/medkor-token"
    is_dry || printf '%s' "${HF_TOKEN:-}" >"$bundle/medkor-token"
    git ls-files -co --exclude-standard -z | while IFS= read -rd '' path; do
        [ ! -e "$path" ] || printf '%s\0' "$path" # git names what was deleted, too
    done >"$bundle/files"
    give tar --null "--files-from=$bundle/files" -czf "$bundle/medkor.tar.gz" &&
        give gcloud compute tpus tpu-vm scp "$bundle/medkor.tar.gz" "$bundle/medkor-token" "$name:" "${reach[@]}" --worker=all &&
        on all "mkdir -p medkor && tar -xzf medkor.tar.gz -C medkor" && worker all prepare "${STORAGE:-}"
}

# Prints the log as it grows until the run has ended on every host; returns its exit code, or $lost.
follow() {
    local codes silent=0
    : >"$bundle/log"
    while :; do
        worker 0 follow $(($(wc -l <"$bundle/log") + 1)) | tee -a "$bundle/log" || true
        ! is_dry || return 0
        codes=$(shown=2 worker all code | sed -n 's/^medkor-code //p') || true
        if [ "$(wc -w <<<"$codes")" = "$hosts" ]; then
            silent=0
            # shellcheck disable=SC2086 # one word a host
            [[ $codes == *running* ]] || return "$(worst $codes)"
        elif [ "$(node_state)" != READY ] || [ $((silent += 1)) -ge 15 ]; then
            return $lost
        fi
        sleep "$pause"
    done
}

if [ "${STOP:-}" = 1 ]; then
    worker all stop
    exit
fi

if is_dry; then
    request
    hosts=1
    prepare
    worker all start "$config" "$@"
    follow
    [ "${DELETE:-}" != 1 ] || delete
    exit
fi

restarts=0 failures=0
while :; do
    ensure
    hosts=$(n_hosts)
    code=$lost
    if prepare && worker all start "$config" "$@"; then
        code=0
        follow || code=$?
    fi
    # 143: stopped by somebody, or the machine is being taken away, which may call itself READY for a while yet.
    [ $code != 143 ] || sleep $((pause * 3))
    state=$(node_state)
    if [ "$state" = READY ] && [ $code != $lost ]; then
        break
    elif [ "$state" = READY ]; then
        [ $((failures += 1)) -lt 3 ] || {
            echo "tpu_vm.sh: $name is there, but could not be reached or set up three times; see above" >&2
            exit 1
        }
        sleep "$pause"
    else
        [ $((restarts += 1)) -le "${RESTARTS:-100}" ] || {
            echo "tpu_vm.sh: $name was lost $restarts times; RESTARTS allows ${RESTARTS:-100}" >&2
            exit 1
        }
        echo "tpu_vm.sh: $name is ${state:-gone}; it is made again, and the run goes on from what was saved" >&2
    fi
done
if [ "${DELETE:-}" = 1 ]; then
    delete
else
    echo "$name costs until it is deleted: gcloud compute tpus queued-resources delete $name --zone=$ZONE --force"
fi
exit "$code"
