"""Detection of a run's processes."""

import pytest

from vt_flax.errors import UserError
from vt_flax.parallel.agreement import check_shared
from vt_flax.parallel.cluster import Cluster, find_cluster
from vt_flax.parallel.processes import finish, gather, report
from vt_flax.version import versions

SLURM = {
    "SLURM_JOB_ID": "1234",
    "SLURM_STEP_NODELIST": "node[007-009],other",
    "SLURM_NTASKS": "4",
    "SLURM_PROCID": "2",
    "SLURM_LOCALID": "0",
    "SLURM_STEP_NUM_NODES": "4",
}


@pytest.fixture(autouse=True)
def no_cluster(monkeypatch):
    for name in (*SLURM, "OMPI_MCA_orte_hnp_uri", "JAX_COORDINATOR_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    # A machine of the cloud would be asked for its metadata.
    monkeypatch.setenv("TPU_SKIP_MDS_QUERY", "1")


def test_a_machine_without_a_cluster_is_alone():
    assert find_cluster() == Cluster()
    assert find_cluster(count=1) == Cluster()


def test_options_come_first():
    cluster = find_cluster("10.0.0.1:8476", 4, 3)
    assert cluster == Cluster(3, 4, "10.0.0.1:8476")
    assert cluster.address == ("10.0.0.1", 8476)


def test_slurm_is_detected(monkeypatch):
    for name, value in SLURM.items():
        monkeypatch.setenv(name, value)
    cluster = find_cluster()
    assert (cluster.index, cluster.count, cluster.local_device_ids) == (2, 4, (0,))
    assert cluster.coordinator.startswith("node007:")
    # JAX derives the port from the job, for some the last that there is.
    monkeypatch.setenv("SLURM_JOB_ID", "4095")
    assert find_cluster().coordinator == "node007:65535"
    # One of several tasks that is to be alone.
    assert find_cluster(count=1) == Cluster()


def test_a_failed_detection_is_one_line(monkeypatch):
    for name, value in {**SLURM, "SLURM_NTASKS": "many"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match="cannot be detected .*many.*: give"):
        find_cluster()


@pytest.mark.parametrize(
    "given, message",
    [
        ({"count": 2}, "need all of --coordinator"),
        ({"coordinator": "a:1"}, "need all of --coordinator"),
        ({"coordinator": "a:1", "count": 2}, "need all of --coordinator"),
        ({"coordinator": "a:1", "count": 2, "index": 2}, "--process 2: must be at lea"),
        ({"coordinator": "a:1", "count": 2, "index": -1}, "--process -1: must be at l"),
        ({"coordinator": "a", "count": 2, "index": 0}, "--coordinator a: write HOST:P"),
        ({"coordinator": "a:x", "count": 2, "index": 0}, "--coordinator a:x: write HO"),
        ({"coordinator": "a:0", "count": 2, "index": 0}, "--coordinator a:0: write HO"),
        ({"coordinator": "a:65536", "count": 2, "index": 0}, "write HOST:PORT"),
    ],
)
def test_what_does_not_fit_is_one_line(given, message):
    with pytest.raises(UserError, match=message):
        find_cluster(**given)


def test_alone_everything_is_agreed(tmp_path):
    assert gather("anything", [1]) == [[1]]
    report("something")
    check_shared(tmp_path / "new")
    finish()
    assert not (tmp_path / "new").exists()


def test_the_version_is_that_of_the_sources():
    assert "sources" in versions()["vt_flax"] and "jaxlib" in versions()
