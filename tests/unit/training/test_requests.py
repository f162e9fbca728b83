"""What a process asks of all."""

import http.server
import os
import signal
import threading
import time

import jax
import jax.numpy as jnp
import pytest

from vt_flax.parallel.mesh import make_mesh
from vt_flax.training.requests import NONE, SAVE, STOP, Requests, watch_for_preemption


def answer(requests: Requests) -> int:
    """Returns what a step makes of the requests of all devices."""
    asked = requests.batch()["request"]
    assert asked.shape == (8,) and len(asked.sharding.device_set) == 8
    return int(jax.jit(jnp.max)(asked))


def test_a_save_is_asked_once_and_a_stop_for_good():
    requests = Requests(make_mesh())
    with requests:
        assert answer(requests) == NONE
        requests.save()
        assert [answer(requests) for _ in range(2)] == [SAVE, NONE]
        os.kill(os.getpid(), signal.SIGTERM)
        requests.save()
        assert [answer(requests) for _ in range(3)] == [STOP] * 3


@pytest.mark.parametrize(
    "name, value",
    [("preempted", "TRUE"), ("maintenance-event", "TERMINATE_ON_HOST_MAINTENANCE")],
)
def test_a_notice_of_the_cloud_is_a_sigterm(name, value):
    """A server in the place of the machine's metadata, which is away at first."""
    calm = {"/preempted": "FALSE", "/maintenance-event": "NONE"}
    answers, asked = {}, []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.headers["Metadata-Flavor"])
            if self.path not in answers:
                self.send_error(503)
                return
            self.send_response(200)
            self.end_headers()
            self.wfile.write(answers[self.path].encode())

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    requests = Requests(make_mesh())
    try:
        with requests:
            watch_for_preemption(f"http://127.0.0.1:{server.server_port}", seconds=0.1)
            for now in ({}, calm):
                answers.update(now)
                time.sleep(0.5)
                assert answer(requests) == NONE
            answers[f"/{name}"] = value
            limit = time.monotonic() + 10
            while answer(requests) == NONE:
                assert time.monotonic() < limit
                time.sleep(0.05)
            assert answer(requests) == STOP
    finally:
        server.shutdown()
        server.server_close()
    assert set(asked) == {"Google"}
