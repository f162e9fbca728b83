"""Compiling in a process of its own."""

import os
import signal
import subprocess
import sys
import time

from waiting import wait_until

CHILD = """
import os, time
from vt_flax.plan.tpu_compiler import read_request
with open(read_request()["file"], "x") as file:
    file.write(str(os.getpid()))
time.sleep(600)
"""
PARENT = """
import json, subprocess, sys
subprocess.run([sys.executable, "-c", sys.argv[1]], input=sys.argv[2], text=True)
"""


def running(pid):
    """Tells whether a process runs; one that nobody has asked for its end does not."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_child_ends_with_its_parent(tmp_path):
    file = tmp_path / "pid"
    request = f'{{"file": "{file}"}}'
    parent = subprocess.Popen([sys.executable, "-c", PARENT, CHILD, request])
    try:
        wait_until(lambda: file.exists() and file.read_text(), 60)
        child = int(file.read_text())
        time.sleep(1.5)
        assert running(child)
        parent.send_signal(signal.SIGKILL)
        parent.wait()
        wait_until(lambda: not running(child), 60)
    finally:
        parent.kill()
        if file.exists() and running(int(file.read_text())):
            os.kill(int(file.read_text()), signal.SIGKILL)
