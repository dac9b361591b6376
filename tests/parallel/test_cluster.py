import pytest

from medkor_jax.parallel.cluster import PORT, ClusterError, Place, find_place

GIVEN = {"MEDKOR_COORDINATOR": "10.0.0.1:7000", "MEDKOR_PROCESSES": "4", "MEDKOR_PROCESS_ID": "2"}
SLURM = {
    "SLURM_JOB_ID": "77", "SLURM_STEP_NODELIST": "node[003-004],node9", "SLURM_NTASKS": "3", "SLURM_PROCID": "1", "SLURM_LOCALID": "0",
    "SLURM_STEP_TASKS_PER_NODE": "1(x3)",
}  # fmt: skip
OPEN_MPI = {
    "OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp://10.96.0.1,10.148.0.1:34911", "OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1", "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
}  # fmt: skip


def test_alone_where_nothing_says_otherwise():
    assert find_place(environment={}) is None
    assert find_place(processes=1, environment={"MEDKOR_COORDINATOR": "10.0.0.1:7000"}) is None


def test_given_by_arguments_or_by_the_environment():
    assert find_place(environment=GIVEN) == Place("10.0.0.1:7000", 4, 2)
    place = find_place("[fe80::1]:9", 3, 0, environment=GIVEN)
    assert (place.host, place.port, place.processes, place.process_id) == ("fe80::1", 9, 3, 0)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"MEDKOR_PROCESSES": ""}, "--processes .*missing"),
        ({"MEDKOR_COORDINATOR": ""}, "--coordinator .*missing"),
        ({"MEDKOR_PROCESSES": "four"}, "MEDKOR_PROCESSES is 'four'"),
        ({"MEDKOR_PROCESS_ID": "4"}, "ids go from 0 to 3"),
        ({"MEDKOR_COORDINATOR": "10.0.0.1"}, "expected HOST:PORT"),
        ({"MEDKOR_COORDINATOR": "10.0.0.1:65535"}, "expected HOST:PORT"),
    ],
)
def test_half_a_place_or_a_wrong_one_is_refused(changes, words):
    with pytest.raises(ClusterError, match=words):
        find_place(environment={**GIVEN, **changes})


@pytest.fixture
def cluster(monkeypatch):
    """Sets a cluster's variables where jax's own detection reads them."""

    def set_all(variables):
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        return find_place(environment=variables)

    return set_all


def test_slurm_with_one_task_a_node_keeps_all_its_gpus(cluster):
    assert cluster(SLURM) == Place(f"node003:{PORT}", 3, 1, "slurm", None)


def test_slurm_with_several_tasks_a_node_takes_one_gpu_each(cluster):
    assert cluster(SLURM | {"SLURM_STEP_TASKS_PER_NODE": "2,1", "SLURM_LOCALID": "1"}).local_id == 1


def test_a_task_that_is_shown_its_own_gpu_alone_takes_that(cluster):
    several = {"SLURM_STEP_TASKS_PER_NODE": "2,1", "SLURM_LOCALID": "1"}
    assert cluster(SLURM | several | {"CUDA_VISIBLE_DEVICES": "5"}).local_id is None
    assert cluster(SLURM | several | {"CUDA_VISIBLE_DEVICES": "4,5"}).local_id == 1


def test_one_task_of_slurm_is_one_process(cluster):
    assert cluster(SLURM | {"SLURM_NTASKS": "1"}) is None


def test_open_mpi_and_a_port_of_ones_own(cluster):
    assert cluster(OPEN_MPI | {"MEDKOR_PORT": "7100"}) == Place("10.96.0.1:7100", 2, 1, "ompi", 1)


def test_a_slice_of_tpus_on_gke(cluster, monkeypatch):
    from jax._src.clusters import cloud_tpu_cluster

    monkeypatch.setattr(cloud_tpu_cluster, "running_in_cloud_tpu_vm", True)
    monkeypatch.setattr(
        cloud_tpu_cluster, "get_metadata", lambda key: ("", "404")
    )  # a pod of GKE has none of a TPU VM
    monkeypatch.setattr(
        cloud_tpu_cluster.BaseTpuCluster, "wait_for_coordinator", classmethod(lambda *_: None)
    )
    place = cluster(
        {"TPU_WORKER_HOSTNAMES": "w-0.svc,w-1.svc", "TPU_WORKER_ID": "1", "TPU_SKIP_MDS_QUERY": "1"}
    )
    assert (place.coordinator, place.processes, place.process_id) == (f"w-0.svc:{PORT}", 2, 1)
