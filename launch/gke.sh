#!/usr/bin/env bash
# TPU slices of a GKE cluster: builds the image, applies launch/gke_jobset.yaml, follows the log.
#
#   IMAGE=REGION-docker.pkg.dev/PROJECT/REPOSITORY/medkor TOPOLOGY=4x4 launch/gke.sh CONFIG [--config.phase3.steps=100 ...]
#
# Settings, all environment variables:
#   IMAGE              where the image goes (required)      BUILD=0   it is there already
#   NAME               of the JobSet (default: medkor); one that runs is followed, one that has ended is replaced
#   ACCELERATOR        of the node pool (default: tpu-v5-lite-podslice; tpu-v5p-slice, tpu-v6e-slice)
#   TOPOLOGY           of a slice (default: 2x4)      CHIPS   a host (default: all of one host up to 2x4 of v5e and v6e, else 4)
#   SLICES             how many (default: 1)
#   CLAIM              PersistentVolumeClaim that many pods may write, for data/ and runs/ (default: medkor)
#   RESTARTS           how often the JobSet starts again when a host was lost or failed (default: 10)
#   DRY_RUN=1          print the commands and the JobSet, do nothing
# kubectl speaks to the cluster of its current context. Ended with Ctrl-C it only stops following. Exit codes: 0 done, 1 failed.
source "$(dirname "${BASH_SOURCE[0]}")/arguments.sh"
config_travels
cd "$root"
: "${IMAGE:?gke.sh: set IMAGE to where the image shall go, such as us-central1-docker.pkg.dev/PROJECT/REPOSITORY/medkor}"
name=${NAME:-medkor} topology=${TOPOLOGY:-2x4} accelerator=${ACCELERATOR:-tpu-v5-lite-podslice}
[[ $topology =~ ^[0-9]+(x[0-9]+){1,2}$ ]] || {
    echo "gke.sh: TOPOLOGY=$topology; expected 2x4, 4x4, 2x2x1 or the like" >&2
    exit 2
}
all_chips=$((${topology//x/*}))
if [ "$all_chips" -le 8 ] && [[ $topology =~ ^[0-9]+x[0-9]+$ ]]; then chips=${CHIPS:-$all_chips}; else chips=${CHIPS:-4}; fi
[ $((all_chips % chips)) = 0 ] || {
    echo "gke.sh: TOPOLOGY=$topology has $all_chips chips, which is no multiple of CHIPS=$chips a host" >&2
    exit 2
}

quoted() { # "..." as JSON and YAML read it
    local text=${1//\\/\\\\}
    printf '"%s"' "${text//\"/\\\"}"
}
arguments="[$(quoted run), $(quoted --config), $(quoted "$config")"
for argument in "$@"; do arguments+=", $(quoted "$argument")"; done
arguments+="]"

jobset=$(cat launch/gke_jobset.yaml)
fill() { jobset=${jobset//"\${$1}"/"$2"}; }
fill NAME "$name"
fill IMAGE "$IMAGE"
fill ACCELERATOR "$accelerator"
fill TOPOLOGY "$topology"
fill HOSTS $((all_chips / chips))
fill CHIPS "$chips"
fill SLICES "${SLICES:-1}"
fill CLAIM "${CLAIM:-medkor}"
fill RESTARTS "${RESTARTS:-10}"
fill ARGUMENTS "$arguments"

# "none", "running", "Completed", "Failed", or "unknown" where the cluster does not answer.
state() {
    local found ended
    if ! found=$(kubectl get jobset "$name" --ignore-not-found -o name) ||
        ! ended=$(kubectl get jobset "$name" --ignore-not-found -o 'jsonpath={.status.terminalState}'); then
        echo unknown
    elif [ -z "$found" ]; then
        echo none
    else
        echo "${ended:-running}"
    fi
}

submit() {
    if [ "${BUILD:-1}" != 0 ]; then
        give docker build --platform=linux/amd64 -f launch/Dockerfile -t "$IMAGE" .
        give docker push "$IMAGE"
    fi
    give kubectl delete jobset "$name" --ignore-not-found
    if is_dry; then
        echo "+ kubectl apply -f - <<EOF"
        echo "$jobset"
        echo EOF
    else
        kubectl apply -f - <<<"$jobset"
    fi
}

first=jobset.sigs.k8s.io/jobset-name=$name,jobset.sigs.k8s.io/job-index=0,batch.kubernetes.io/job-completion-index=0
if is_dry; then
    submit
    give kubectl wait pod "--selector=$first" --for=condition=Ready --timeout=60s
    give kubectl logs --follow "--selector=$first" --tail=-1
    exit
fi
case $(state) in
unknown) exit 1 ;; # kubectl has said why
running) echo "gke.sh: $name runs already; it is followed" ;;
*) submit ;;
esac
while ended=$(state) && [[ $ended == running || $ended == unknown ]]; do
    if kubectl wait pod "--selector=$first" --for=condition=Ready --timeout=60s >/dev/null 2>&1; then
        kubectl logs --follow "--selector=$first" --tail=-1 || true
    fi
    sleep "${PAUSE:-10}"
done
echo "gke.sh: $name: $ended"
[ "$ended" = Completed ]
