"""Detection of a run's processes, and registration with threads in their place."""

import socket
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from waiting import free_port

from vt_flax.errors import UserError
from vt_flax.parallel import cluster as module
from vt_flax.parallel.cluster import Cluster, find_cluster, register
from vt_flax.parallel.processes import check_shared, finish, gather, report

SLURM = {
    "SLURM_JOB_ID": "1234",
    "SLURM_STEP_NODELIST": "node[007-009],other",
    "SLURM_NTASKS": "4",
    "SLURM_PROCID": "2",
    "SLURM_LOCALID": "0",
    "SLURM_STEP_NUM_NODES": "4",
}


@pytest.fixture(autouse=True)
def alone(monkeypatch):
    """No cluster is detected; processes are on one host and wait for short times."""
    for name in (*SLURM, "OMPI_MCA_orte_hnp_uri", "JAX_COORDINATOR_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    # A machine of the cloud would be asked for its metadata.
    monkeypatch.setenv("TPU_SKIP_MDS_QUERY", "1")
    monkeypatch.setattr(module, "MESSAGE_SECONDS", 1.0)
    monkeypatch.setattr(module, "RETRY_SECONDS", 0.05)
    monkeypatch.setattr(module.platform, "node", lambda: "host")


def test_options_come_first():
    assert find_cluster() == Cluster()
    cluster = find_cluster("10.0.0.1:8476", 4, 3)
    assert cluster == Cluster(3, 4, "10.0.0.1:8476")
    assert cluster.address == ("10.0.0.1", 8476)


def test_slurm_is_detected(monkeypatch):
    for name, value in SLURM.items():
        monkeypatch.setenv(name, value)
    cluster = find_cluster()
    assert (cluster.index, cluster.count, cluster.local_device_ids) == (2, 4, (0,))
    assert cluster.coordinator.startswith("node007:")
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
        (("", 2, None), "need all of --coordinator"),
        (("a:1", 2, 2), "--process 2: must be at least 0"),
        (("a:65536", 2, 0), "--coordinator a:65536: write HOST:PORT"),
    ],
)
def test_invalid_options_are_rejected(given, message):
    with pytest.raises(UserError, match=message):
        find_cluster(*given)


def test_a_single_process_agrees_with_itself(tmp_path):
    assert gather("anything", [1]) == [[1]]
    report("something")
    check_shared(tmp_path / "new")
    finish()
    assert not (tmp_path / "new").exists()


# Registration.


def call(indices, count, *, seconds=1.0, before=None):
    """Returns the result or the error of each caller, in order."""
    port = free_port()

    def one(index):
        try:
            return register(Cluster(index, count, f"127.0.0.1:{port}"), seconds)
        except UserError as error:
            return error

    with ThreadPoolExecutor() as pool:
        first = pool.submit(one, indices[0])
        if before:
            before(("127.0.0.1", port))
        others = [*pool.map(one, indices[1:])]
        return [first.result(), *others]


def test_missing_processes_are_named():
    for error in call([0, 1], 4):
        assert str(error) == "processes 2, 3 of 4 did not start in 1 s"
        assert (error.status, error.everywhere) == (5, True)


def test_process_0_is_missing():
    (error,) = call([1], 2, seconds=0.2)
    assert str(error).startswith("process 1 of 2: process 0 does not answer after 0 s")
    assert "Connection refused" in str(error) and error.status == 5


@pytest.mark.parametrize("indices, count", [([0, 1, 1], 3), ([0, 2], 2)])
def test_a_process_with_a_wrong_index(indices, count):
    for error in call(indices, count, seconds=20):
        assert str(error) == (
            f"process {indices[-1]} (host) does not fit the others: give each "
            f"--processes {count} and its own --process"
        )
        assert (error.status, error.everywhere) == (2, True)


def test_a_port_that_is_taken():
    with socket.socket() as other:
        other.bind(("", 0))
        other.listen()
        cluster = Cluster(0, 2, f"127.0.0.1:{other.getsockname()[1]}")
        with pytest.raises(UserError, match="process 0: Address already in use: end"):
            register(cluster, 1.0)


def test_port_scanners_are_ignored(capfd):
    """One that sends something else, and one that connects and sends nothing."""

    def scan(address):
        time.sleep(0.2)
        for text in (b"GET / HTTP/1.1\r\n\r\n", b"1\n", b""):
            with socket.create_connection(address) as scanner:
                scanner.sendall(text)
                time.sleep(0.1)

    assert call([0, 1], 2, seconds=10, before=scan) == [["host"] * 2] * 2
    assert capfd.readouterr() == ("", "")
