"""launch/gke.sh: the JobSet it fills in, against the schemas of Kubernetes; what it does with one that is there."""

import pathlib
import re
import tomllib

import pytest
import yaml

ROOT = pathlib.Path(__file__).parents[2]
IMAGE = "us-docker.pkg.dev/p/r/medkor"
ARGUMENTS = ("configs/pipeline.py:phase3", '--config.run_dir=a "b" \\c', "--restart", "phase3")


def jobset(place, *arguments, **env):
    out = place.run("gke.sh", *arguments or ARGUMENTS, DRY_RUN="1", IMAGE=IMAGE, **env).stdout
    return yaml.safe_load(
        re.search(r"kubectl apply -f - <<EOF\n(.*?)\nEOF$", out, re.DOTALL | re.MULTILINE)[1]
    )


def pod(found):
    return found["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]


def test_the_job_it_repeats_is_one_that_kubernetes_takes(place):
    kubernetes_validate = pytest.importorskip(
        "kubernetes_validate", reason="comes with the extra `test`"
    )
    template = jobset(place)["spec"]["replicatedJobs"][0]["template"]
    job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "medkor"}, **template}
    kubernetes_validate.validate(job, "1.33", strict=True)
    template["spec"]["template"]["spec"]["containers"][0]["imagge"] = "x"
    with pytest.raises(kubernetes_validate.ValidationError, match="imagge"):
        kubernetes_validate.validate(job, "1.33", strict=True)


def test_the_jobset_has_the_fields_of_v1alpha2(place):
    """Names and values: config/components/crd/bases/jobset.x-k8s.io_jobsets.yaml of kubernetes-sigs/jobset."""
    found = jobset(place)
    assert (found["apiVersion"], found["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    spec = found["spec"]
    assert set(spec) <= {
        "coordinator", "failurePolicy", "managedBy", "network", "replicatedJobs", "startupPolicy", "successPolicy", "suspend",
        "ttlSecondsAfterFinished"}  # fmt: skip
    policy = spec["failurePolicy"]
    assert set(policy) <= {"maxRestarts", "restartStrategy", "rules"} and isinstance(
        policy["maxRestarts"], int
    )
    for rule in policy["rules"]:
        assert (
            {"action", "name"}
            <= set(rule)
            <= {"action", "name", "onJobFailureReasons", "targetReplicatedJobs"}
        )
        assert re.fullmatch(r"[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?", rule["name"])
        assert rule["action"] in (
            "FailJobSet",
            "RestartJobSet",
            "RestartJobSetAndIgnoreMaxRestarts",
        )
    (job,) = spec["replicatedJobs"]
    assert set(job) <= {"dependsOn", "groupName", "name", "replicas", "template"} and isinstance(
        job["replicas"], int
    )
    assert set(job["template"]) <= {"metadata", "spec"}


def test_bad_config_and_a_closed_gate_end_it_and_anything_else_starts_it_again(place):
    spec = jobset(place)["spec"]
    (rule,) = spec["failurePolicy"]["rules"]
    assert (rule["action"], rule["onJobFailureReasons"]) == ("FailJobSet", ["PodFailurePolicy"])
    job = spec["replicatedJobs"][0]["template"]["spec"]
    (codes,) = job["podFailurePolicy"]["rules"]
    assert codes == {
        "action": "FailJob",
        "onExitCodes": {"containerName": "medkor", "operator": "In", "values": [2, 3]},
    }
    assert (
        job["backoffLimit"] == 0 and job["template"]["spec"]["restartPolicy"] == "Never"
    )  # which podFailurePolicy wants
    assert spec["failurePolicy"]["maxRestarts"] > 0


def test_config_data_run_directory_and_token_come_in(place):
    found = pod(jobset(place, CLAIM="shared-claim"))
    (container,) = found["containers"]
    assert container["image"] == IMAGE and container["args"] == ["run", "--config", *ARGUMENTS]
    assert {m["mountPath"]: m.get("subPath") for m in container["volumeMounts"]} == {
        "/medkor/data": "data", "/medkor/runs": "runs", "/dev/shm": None}  # fmt: skip
    assert {"name": "shared", "persistentVolumeClaim": {"claimName": "shared-claim"}} in found[
        "volumes"
    ]
    env = {entry["name"]: entry for entry in container["env"]}
    assert env["HF_TOKEN"]["valueFrom"]["secretKeyRef"] == {
        "name": "huggingface",
        "key": "token",
        "optional": True,
    }


@pytest.mark.parametrize(
    "topology, hosts, chips",
    [("2x2", 1, 4), ("2x4", 1, 8), ("4x4", 4, 4), ("8x16", 32, 4), ("2x2x2", 2, 4)],
)
def test_a_topology_has_its_hosts_and_chips(topology, hosts, chips, place):
    found = jobset(place, TOPOLOGY=topology, SLICES="2", ACCELERATOR="tpu-x")
    (job,) = found["spec"]["replicatedJobs"]
    spec = job["template"]["spec"]
    assert (job["replicas"], spec["parallelism"], spec["completions"], spec["completionMode"]) == (
        2,
        hosts,
        hosts,
        "Indexed",
    )
    assert pod(found)["containers"][0]["resources"]["limits"] == {"google.com/tpu": chips}
    label = "cloud.google.com/gke-tpu-"
    assert pod(found)["nodeSelector"] == {
        label + "accelerator": "tpu-x",
        label + "topology": topology,
    }


@pytest.mark.parametrize("env, words", [
    (dict(TOPOLOGY="16"), "expected 2x4, 4x4"), (dict(TOPOLOGY="2x4", CHIPS="3"), "no multiple of CHIPS=3"),
])  # fmt: skip
def test_a_topology_that_is_none_is_refused(env, words, place):
    done = place.run("gke.sh", *ARGUMENTS, DRY_RUN="1", IMAGE=IMAGE, **env)
    assert done.returncode == 2 and words in done.stderr and not done.stdout


def test_nothing_is_left_to_fill_in(place):
    assert "${" not in str(jobset(place))


def test_the_dry_run_builds_pushes_replaces_and_follows(place):
    commands = place.dry("gke.sh", *ARGUMENTS, IMAGE=IMAGE)
    assert [line.split()[:3] for line in commands] == [
        ["docker", "build", "--platform=linux/amd64"], ["docker", "push", IMAGE], ["kubectl", "delete", "jobset"],
        ["kubectl", "apply", "-f"], ["kubectl", "wait", "pod"], ["kubectl", "logs", "--follow"]]  # fmt: skip
    assert not [
        line
        for line in place.dry("gke.sh", *ARGUMENTS, IMAGE=IMAGE, BUILD="0")
        if line.startswith("docker")
    ]


KUBECTL = r"""
cd "$FAKE"
echo "kubectl $*" >>calls
case "$1 $2" in
"get jobset")
    [ -e state ] || exit 0
    read -r first <state
    [ "$first" != away ] || { sed -i 1d state; echo "no route to the cluster" >&2; exit 1; }
    case $* in
    *jsonpath*) printf '%s' "${first#running}"; sed -i 1d state; [ -s state ] || echo "$first" >state ;;
    *) echo jobset/medkor ;;
    esac ;;
"delete jobset") rm -f state ;;
"apply -f") cat >applied; printf 'running\nrunning\n%s\n' "$ENDS" >state ;;
"logs --follow") echo "a step" ;;
esac
"""


@pytest.fixture
def cluster(place):
    place.command("kubectl", KUBECTL)
    place.command("docker", 'echo "docker $*" >>"$FAKE/calls"')
    place.env |= {"FAKE": str(place.directory), "IMAGE": IMAGE, "PAUSE": "0"}
    return place


def calls(cluster):
    return [
        " ".join(line.split()[:2])
        for line in (cluster.directory / "calls").read_text().splitlines()
    ]


@pytest.mark.parametrize("ends, code", [("Completed", 0), ("Failed", 1)])
def test_it_applies_follows_until_the_end_and_says_how_it_ended(ends, code, cluster):
    done = cluster.run("gke.sh", *ARGUMENTS, ENDS=ends)
    assert done.returncode == code and f"medkor: {ends}" in done.stdout and "a step" in done.stdout
    assert yaml.safe_load((cluster.directory / "applied").read_text())["kind"] == "JobSet"
    assert calls(cluster).index("docker push") < calls(cluster).index("kubectl apply")


def test_one_that_runs_is_followed_and_not_replaced(cluster):
    (cluster.directory / "state").write_text(
        "running\naway\nrunning\nCompleted\n"
    )  # once the cluster does not answer
    done = cluster.run("gke.sh", *ARGUMENTS)
    assert done.returncode == 0 and "runs already; it is followed" in done.stdout
    assert not {"kubectl apply", "kubectl delete", "docker build"} & set(calls(cluster))


def test_a_cluster_that_does_not_answer_is_given_nothing(cluster):
    (cluster.directory / "state").write_text("away\n")
    done = cluster.run("gke.sh", *ARGUMENTS)
    assert done.returncode == 1 and "no route to the cluster" in done.stderr
    assert not {"kubectl apply", "docker build"} & set(calls(cluster))


def test_one_that_has_ended_is_replaced(cluster):
    (cluster.directory / "state").write_text("Failed\n")
    assert cluster.run("gke.sh", *ARGUMENTS, ENDS="Completed", BUILD="0").returncode == 0
    assert calls(cluster).index("kubectl delete") < calls(cluster).index(
        "kubectl apply"
    ) and "docker build" not in calls(cluster)


def test_the_image_has_what_medkor_needs_and_gives_it_its_signals():
    text = (ROOT / "launch/Dockerfile").read_text(encoding="utf-8")
    steps = [
        line.split(maxsplit=1) for line in text.splitlines() if line and not line.startswith("#")
    ]
    copied = [name for kind, rest in steps if kind == "COPY" for name in rest.split()[:-1]]
    assert all((ROOT / name).exists() for name in copied) and {
        "medkor_jax",
        "configs",
        "pyproject.toml",
    } <= set(copied)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert {project["readme"], *project["license-files"]} <= set(
        copied
    )  # without which pip does not build
    extras = next(rest for kind, rest in steps if kind == "ARG").removeprefix("EXTRAS=").split(",")
    assert set(extras) <= set(project["optional-dependencies"])
    assert ["ENTRYPOINT", '["medkor"]'] in steps and ["WORKDIR", "/medkor"] in steps


def test_the_claim_in_the_readme_is_one_that_kubernetes_takes():
    kubernetes_validate = pytest.importorskip(
        "kubernetes_validate", reason="comes with the extra `test`"
    )
    text = (ROOT / "launch/README.md").read_text(encoding="utf-8")
    claim = yaml.safe_load(re.search(r"```yaml\n(.*?)```", text, re.DOTALL)[1])
    kubernetes_validate.validate(claim, "1.33", strict=True)
    assert claim["metadata"]["name"] == "medkor" and claim["spec"]["accessModes"] == [
        "ReadWriteMany"
    ]
