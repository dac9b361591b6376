"""launch/tpu_vm.sh against a stand-in for gcloud that keeps a TPU of several hosts in a directory.

The stand-in holds the states of the node and its request in files, and runs on each host what it is asked to run there, with
the host's own home. So tpu_worker.sh really runs, and a run really goes on by itself.
"""

import os
import re
import shlex
import signal

import pytest

GCLOUD = r"""
cd "$FAKE"
echo "gcloud $*" >>calls
text() { cat "$1" 2>/dev/null || exit 1; }
for word in "$@"; do case $word in --worker=*) worker=${word#*=} ;; --command=*) command=${word#*=} ;; esac; done
hosts() { if [ "${worker:-all}" = all ]; then ls -d host-*; else echo "host-$worker"; fi; }
case "$3 $4" in
"queued-resources describe") text queue ;;
"queued-resources delete") rm -rf queue node host-* ;;
"queued-resources create")
    echo ACTIVE >queue; echo READY >node
    for i in $(seq 0 $((HOSTS - 1))); do mkdir "host-$i"; done ;;
"tpu-vm describe")
    case $* in *networkEndpoints*) seq -s ';' "$HOSTS" ;; *) text node ;; esac ;;
"tpu-vm delete") rm -rf node host-* ;;
"tpu-vm start") echo READY >node ;;
"tpu-vm scp") for host in $(hosts); do cp "$5" "$6" "$host"; done ;;
"tpu-vm ssh")
    [ "$(cat node)" = READY ] || exit 255
    code=0
    for host in $(hosts); do (cd "$host" && HOME=$PWD HOST=$host bash -c "$command") || code=$?; done
    exit $code ;;
*) exit 64 ;;
esac
"""
# On its first start it is preempted, if so wanted; what it prints comes in two pieces.
MEDKOR = r"""
cd "$FAKE"
echo "$HOST: $*" >>started
echo "first line of $HOST"
if [ -e preempt ] && [ "$HOST" = host-0 ]; then
    rm preempt; sleep 0.5
    echo "$PREEMPTED_AS" >node; echo "$QUEUED_AS" >queue
    kill -KILL $$
fi
[ -z "${SLOW:-}" ] || { trap 'echo saved; exit 143' TERM; for i in $(seq 300); do sleep 0.1; done; }
sleep 0.5
echo "last line of $HOST"
code=CODE_${HOST#host-}; exit "${!code:-0}"
"""


@pytest.fixture
def tpu(place):
    fake = place.directory / "tpu"
    fake.mkdir()
    place.command("gcloud", GCLOUD)
    place.command("medkor", MEDKOR)
    place.command("sudo", 'exec "$@"')
    place.command("mountpoint", "exit 1")
    place.command("apt-get", "exit 1")  # nothing is installed by a test
    place.command("gcsfuse", 'echo "gcsfuse $*" >>"$FAKE/calls"')
    place.fake = fake
    place.env |= {
        "FAKE": str(fake), "ZONE": "us-x", "TYPE": "v5litepod-16", "PAUSE": "0", "HOSTS": "2", "STORAGE": "gs://mine",
        "MEDKOR_STORAGE_PLACE": str(place.directory / "shared"), "TMPDIR": str(place.directory),
    }  # fmt: skip
    return place


def calls(tpu):
    return list((tpu.fake / "calls").read_text().splitlines())


def started(tpu):
    path = tpu.fake / "started"
    return path.read_text().splitlines() if path.exists() else []


ARGUMENTS = ("configs/quickstart.py:phase1", "--config.run_dir=runs/a b")
TOLD = "run --config configs/quickstart.py:phase1 --config.run_dir=runs/a b"


def test_a_dry_run_shows_the_whole_way(place):
    env = dict(ZONE="us-x", PROJECT="p", TYPE="v6e-16", SPOT="1", DELETE="1")
    env |= dict(STORAGE="10.0.0.2:/medkor", CREATE_FLAGS="--network=n")
    commands = place.dry("tpu_vm.sh", *ARGUMENTS, **env)
    steps = [" ".join(shlex.split(line)[:5]) for line in commands]
    assert [step.split()[3:] for step in steps if step.startswith("gcloud compute tpus")] == [
        ["queued-resources", "create"], ["tpu-vm", "scp"], ["tpu-vm", "ssh"], ["tpu-vm", "ssh"], ["tpu-vm", "ssh"],
        ["tpu-vm", "ssh"], ["queued-resources", "delete"]]  # fmt: skip
    create = shlex.split(commands[0])
    machine = {"--accelerator-type=v6e-16", "--runtime-version=v2-alpha-tpuv6e", "--spot"}
    assert machine | {"--network=n", "--zone=us-x", "--project=p"} <= set(create)
    words = [word for line in commands for word in shlex.split(line)]
    remote = [word.removeprefix("--command=") for word in words if word.startswith("--command=")]
    assert [shlex.split(command)[1:] for command in remote[1:]] == [
        ["medkor/launch/tpu_worker.sh", "prepare", "10.0.0.2:/medkor"],
        ["medkor/launch/tpu_worker.sh", "start", "configs/quickstart.py:phase1", "--config.run_dir=runs/a b"],
        ["medkor/launch/tpu_worker.sh", "follow", "1"]]  # fmt: skip


@pytest.mark.parametrize("type_, runtime", [
    ("v5litepod-8", "v2-alpha-tpuv5-lite"), ("v5p-8", "v2-alpha-tpuv5"), ("v4-8", "tpu-ubuntu2204-base"),
])  # fmt: skip
def test_each_kind_of_tpu_has_its_software(type_, runtime, place):
    assert f"--runtime-version={runtime}" in place.dry("tpu_vm.sh", *ARGUMENTS, ZONE="us-x", TYPE=type_)[0]
    assert "--runtime-version=other" in place.dry("tpu_vm.sh", *ARGUMENTS, ZONE="us-x", TYPE=type_, RUNTIME="other")[0]


def test_a_slice_is_made_given_the_checkout_run_on_all_hosts_and_followed(tpu):
    done = tpu.run("tpu_vm.sh", *ARGUMENTS, HF_TOKEN="hf_secret", DELETE="")
    assert done.returncode == 0, done.stderr
    assert sorted(started(tpu)) == [f"host-0: {TOLD}", f"host-1: {TOLD}"]
    assert re.search(r"first line of host-0\n(.*\n)*last line of host-0", done.stdout) and "line of host-1" not in done.stdout
    host = tpu.fake / "host-1"
    assert (host / "medkor/medkor_jax/cli.py").is_file() and not (host / "medkor/.git").exists()
    shared = tpu.directory / "shared"
    assert (host / "medkor/runs").resolve() == shared / "runs" and (host / "medkor/data").resolve() == shared / "data"
    token = host / ".cache/huggingface/token"
    assert token.read_text() == "hf_secret" and token.stat().st_mode & 0o77 == 0
    assert "hf_secret" not in done.stdout + done.stderr + "".join(calls(tpu))
    assert not list(tpu.directory.glob("tmp.*")), "a bundle with the token was left behind"
    assert "costs until it is deleted" in done.stdout and (tpu.fake / "node").exists()


@pytest.mark.parametrize("node, queue", [("PREEMPTED", "SUSPENDED"), ("TERMINATED", "SUSPENDING"), ("", "SUSPENDED")])
def test_after_preemption_the_machine_is_made_again_and_the_same_command_given(node, queue, tpu):
    (tpu.fake / "preempt").touch()
    done = tpu.run("tpu_vm.sh", *ARGUMENTS, SPOT="1", DELETE="1", PREEMPTED_AS=node, QUEUED_AS=queue, timeout=90)
    assert done.returncode == 0, done.stderr
    assert sorted(started(tpu)) == [f"host-{i}: {TOLD}" for i in (0, 0, 1, 1)]
    verbs = [" ".join(call.split()[3:5]) for call in calls(tpu)]
    assert verbs.count("queued-resources create") == 2 and verbs.count("queued-resources delete") == 2
    assert f"medkor is {node or 'gone'}; it is made again, and the run goes on" in done.stderr
    assert not (tpu.fake / "node").exists()


def test_the_worst_code_of_all_hosts_is_the_launcher_s(tpu):
    assert tpu.run("tpu_vm.sh", *ARGUMENTS, CODE_0="3", CODE_1="3").returncode == 3
    assert tpu.run("tpu_vm.sh", *ARGUMENTS, CODE_1="2").returncode == 2
    assert [" ".join(call.split()[3:5]) for call in calls(tpu)].count("queued-resources create") == 1  # reused


def test_a_run_goes_on_without_its_follower_is_found_again_and_can_be_stopped(tpu):
    first = tpu.start("tpu_vm.sh", *ARGUMENTS, SLOW="1")
    while "first line of host-0" not in first.stdout.readline():
        assert first.poll() is None
    os.killpg(first.pid, signal.SIGINT)  # Ctrl-C in a terminal
    first.communicate(timeout=20)
    second = tpu.start("tpu_vm.sh", *ARGUMENTS, SLOW="1")
    while "first line of host-0" not in (line := second.stdout.readline()):
        assert line or second.poll() is None
    assert len(started(tpu)) == 2  # once on each host
    assert tpu.run("tpu_vm.sh", *ARGUMENTS, STOP="1").returncode == 0
    out, err = second.communicate(timeout=60)
    assert second.returncode == 143 and "saved" in out, err


def test_several_hosts_without_shared_storage_are_refused(tpu):
    done = tpu.run("tpu_vm.sh", *ARGUMENTS, STORAGE="")
    assert done.returncode == 2 and "has 2 hosts, and all must see one run directory" in done.stderr and not started(tpu)


def test_one_host_without_storage_is_told_what_that_means(tpu):
    done = tpu.run("tpu_vm.sh", *ARGUMENTS, STORAGE="", HOSTS="1")
    assert done.returncode == 0 and "the run is on the disk of medkor, and lost with it" in done.stderr


def test_a_machine_that_cannot_be_set_up_is_given_up(tpu):
    done = tpu.run("tpu_vm.sh", *ARGUMENTS, STORAGE="s3://elsewhere", timeout=90)
    assert done.returncode == 1 and "expected gs://BUCKET or HOST:/EXPORT" in done.stderr
    assert "could not be reached or set up three times" in done.stderr and not started(tpu)
