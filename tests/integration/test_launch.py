"""The launch scripts: help, the interpreter they choose, and the environment."""

import configparser
import pathlib
import re
import shutil
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]
SCRIPTS = [
    *("launch/quickstart.sh", "launch/test.sh", "launch/local_pod.sh"),
    *("launch/ablation.sh", "launch/oldest.sh", "launch/notebooks.sh"),
]


# Stands for an interpreter. What it is to run with -c is run by a real one that is made
# to look like it; `-m venv FOLDER` copies it there, and `-m pip` is recorded.
INTERPRETER = """#!/bin/sh
case "$1 $2" in
  -c*) shift; exec {real} -S -c '
import ensurepip, sys, sysconfig, venv
sys.version, sys.version_info = "{version} (fake)", {info}
{more}
exec(sys.argv.pop(1))' "$@" ;;
  "-m venv") mkdir -p "$3/bin" && cp "$0" "$3/bin/python" ;;
  "-m pip") echo "$*" >>"${{CALLS:-/dev/null}}" ;;
esac
"""
NO_VENV = 'sys.modules["ensurepip"] = None'
FREE_THREADED = "sysconfig.get_config_var = lambda name: 1"
# As pyenv's, of a version that is not selected; and one that seems to have run.
SHIM = '#!/bin/sh\necho "pyenv: $0: command not found" >&2\nexit 127\n'
CHATTY = '#!/bin/sh\necho "Python was not found; run it without arguments"\n'
PYENV = "home/.pyenv/versions"
UV = "home/.local/share/uv/python"


def run(*arguments, cwd=ROOT, **environment):
    return subprocess.run(
        ["bash", *arguments],
        cwd=cwd,
        env={"PATH": "/usr/bin:/bin", **environment},
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_and_a_missing_python(script, tmp_path):
    done = run(script, "--help")
    assert done.returncode == 0
    assert done.stdout.startswith(f"usage: bash {script}")
    venv = str(tmp_path / "venv")
    arguments = ["2"] if script == "launch/local_pod.sh" else []
    done = run(script, *arguments, PYTHON="no-such-python", VENV=venv)
    assert error_of(done).startswith("PYTHON=no-such-python does not run")
    assert not pathlib.Path(venv).exists()


def test_the_versions_are_those_of_the_metadata():
    done = run("-c", 'source launch/common.sh; echo "${supported[*]}"')
    minors = done.stdout.split()
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    after = int(minors[0].removeprefix("3.")) + 1
    assert setup["options"]["python_requires"] == f">={minors[-1]},<3.{after}"
    named = setup["metadata"]["classifiers"].split("\n")
    prefix = "Programming Language :: Python :: 3."
    assert [n for n in named if n.startswith(prefix)] == [
        prefix + minor.removeprefix("3.") for minor in reversed(minors)
    ]
    for page in ("README.md", "docs/install.md"):
        words = f"Python {', '.join(minors[:-1])} or {minors[-1]}"
        assert words in " ".join((ROOT / page).read_text().split())


class Machine:
    """A machine that has the interpreters that are put on it, and no other."""

    def __init__(self, folder):
        self.folder = folder
        for tool in ("bash", "cat", "cksum", "cp", "mkdir", "rm", "sort"):
            self.path("tools").mkdir(exist_ok=True)
            self.path(f"tools/{tool}").symlink_to(shutil.which(tool))

    def path(self, name):
        return self.folder / name

    def put(self, name, version="", more=""):
        """Puts an interpreter of the version there; or a script."""
        text = version
        if not version.startswith("#!"):
            numbers, _, candidate = version.partition("rc")
            level = "candidate" if candidate else "final"
            info = (*map(int, numbers.split(".")), level, int(candidate or 0))
            info = str(info).replace("'", '"')
            text = INTERPRETER.format(
                real=sys.executable, version=version, info=info, more=more
            )
        self.path(name).parent.mkdir(parents=True, exist_ok=True)
        self.path(name).write_text(text)
        self.path(name).chmod(0o755)

    def run(self, code, *arguments, **environment):
        """Runs a command of the shell that may use what is in common.sh."""
        folders = ("shims", "bin", "other", "tools")
        return run(
            *("-c", f"set -euo pipefail; source {ROOT}/launch/common.sh; {code}"),
            *("-", *arguments),
            cwd=self.folder,
            PATH=":".join(str(self.path(name)) for name in folders),
            HOME=str(self.path("home")),
            **environment,
        )

    def choose(self, *minors, **environment):
        minors = minors or ("3.13", "3.12", "3.11")
        choose = 'choose_python "$@"; echo "$PYTHON $version"'
        return self.run(choose, *minors, **environment)


@pytest.fixture
def machine(tmp_path):
    return Machine(tmp_path)


def error_of(done):
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    return done.stderr.removeprefix("error: ")


@pytest.mark.parametrize(
    "there, chosen",
    [
        pytest.param(
            {"shims/python3.13": CHATTY, "bin/python3.12": "3.12.1"},
            "bin/python3.12",
            id="not a shim that succeeds",
        ),
        pytest.param(
            {
                "shims/python3.12": SHIM,
                **{f"{PYENV}/3.12.{i}/bin/python3.12": f"3.12.{i}" for i in (9, 10)},
            },
            f"{PYENV}/3.12.10/bin/python3.12",
            id="behind a shim, the newest of pyenv",
        ),
        pytest.param(
            {
                "bin/python3": "3.11.2",
                f"{UV}/cpython-3.13.5-linux-x86_64-gnu/bin/python3.13": "3.13.5",
            },
            f"{UV}/cpython-3.13.5-linux-x86_64-gnu/bin/python3.13",
            id="of uv",
        ),
        pytest.param(
            {"bin/python3.13": "3.13.0rc2", "bin/python3.11": "3.11.2"},
            "bin/python3.11",
            id="not a release candidate",
        ),
        pytest.param(
            {"bin/python3.13": ("3.13.0", NO_VENV), "other/python3": "3.12.1"},
            "other/python3",
            id="not one without venv; under a general name",
        ),
        pytest.param(
            {
                f"{PYENV}/3.13.0t/bin/python3.13": ("3.13.0", FREE_THREADED),
                "bin/python3": "3.14.0",
                "bin/python": "3.11.2",
            },
            "bin/python",
            id="neither a free-threaded one nor one that is too new",
        ),
    ],
)
def test_the_newest_python_that_runs_is_chosen(there, chosen, machine):
    for name, kind in there.items():
        machine.put(name, *([kind] if isinstance(kind, str) else kind))
    done = machine.choose()
    assert done.stdout.split()[:1] == [str(machine.path(chosen))], done.stderr
    kind = there[chosen]
    assert done.stdout.split()[1] == (kind if isinstance(kind, str) else kind[0])


@pytest.mark.parametrize(
    "there, wanted",
    [
        ({}, "no Python 3.13, 3.12, 3.11 runs, from PATH, pyenv or uv: install one"),
        (
            {"bin/python3.12": ("3.12.3", NO_VENV), "bin/python3": ("3.11.2", NO_VENV)},
            "python3.12 is Python 3.12.3, which has no venv module (Debian, Ubuntu: "
            "apt-get install python3.12-venv): install one",
        ),
    ],
)
def test_no_python_is_one_line(there, wanted, machine):
    for name, kind in there.items():
        machine.put(name, *([kind] if isinstance(kind, str) else kind))
    assert wanted in error_of(machine.choose())


def test_a_python_that_is_named_is_taken_or_refused(machine):
    machine.put("bin/python3.13", "3.13.0")
    machine.put("bin/mine", "3.10.13")
    wanted = "PYTHON=mine is Python 3.10.13, which is not supported: set it to a Python"
    assert wanted in error_of(machine.choose(PYTHON="mine"))
    machine.put("bin/mine", "3.12.3")
    assert machine.choose(PYTHON="mine").stdout == "mine 3.12.3\n"


def test_an_environment_is_made_once_and_kept(machine):
    def make(extras="train", **environment):
        calls = machine.path("calls")
        calls.write_text("")
        done = machine.run(
            'make_environment "$1"', extras, CALLS=str(calls), **environment
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines(), calls.read_text()

    machine.path(".ci").mkdir()
    for name in ("setup.cfg", "pyproject.toml", ".ci/constraints.txt"):
        machine.path(name).write_text("[metadata]\n")
    machine.put("bin/python3.12", "3.12.1")
    python = machine.path("bin/python3.12")
    lines, calls = make("test")
    assert lines[0] == f"== Python 3.12.1 ({python}), new environment .venv"
    assert calls.endswith("--editable .[test]\n")
    assert make("test") == (["== Python 3.12.1, environment .venv"], "")
    # Other extras, other bounds and another Python in it: each is a new installation.
    assert make()[1].endswith("--editable .[train]\n")
    machine.path("setup.cfg").write_text("[options]\n")
    assert make()[1]
    machine.put(".venv/bin/python", "3.12.2")
    assert make()[1] and not make()[1]
    # A newer Python has come. PYTHON may name the environment's own version.
    machine.put("bin/python3.13", "3.13.0")
    assert make() == (["== Python 3.12.2, environment .venv"], "")
    assert make(PYTHON="python3.12")[0] == ["== Python 3.12.2, environment .venv"]


def test_an_environment_that_does_not_fit_is_one_line(machine):
    def error(**environment):
        return error_of(machine.run("make_venv .venv 3.13 3.12", **environment))

    machine.put("bin/python3.13", "3.13.0")
    machine.put(".venv/bin/python", "3.12.1")
    wanted = ".venv has Python 3.12.1, PYTHON=python3.13 is 3.13.0: remove the folder, "
    assert error(PYTHON="python3.13").startswith(wanted)
    machine.put(".venv/bin/python", "3.10.13")
    assert error().startswith(".venv has Python 3.10.13, which is not supported: rem")
    # Its interpreter was uninstalled.
    machine.path(".venv/bin/python").unlink()
    machine.path(".venv/bin/python").symlink_to(machine.path("nowhere/python"))
    assert error().startswith(".venv/bin/python does not run: remove the folder, or")


def test_the_quickstart_installs_the_extra_that_is_named(tmp_path):
    python = tmp_path / "venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    # It is examined by `-c`; other commands are printed.
    examined = f'[ "$1" != -c ] || exec {sys.executable} "$@"'
    python.write_text(f'#!/bin/sh\n{examined}\necho "python $*"\n')
    python.chmod(0o755)
    environment = {"PYTHON": sys.executable, "VENV": str(tmp_path / "venv")}

    def commands(*arguments):
        (tmp_path / "venv" / ".installed").unlink(missing_ok=True)
        done = run("launch/quickstart.sh", *arguments, **environment)
        assert done.returncode == 0, done.stderr
        lines = [x for x in done.stdout.splitlines() if x.startswith("python ")]
        install, train, _ = lines
        return install.split()[-1], train.partition("--workdir ")[2]

    override = "--config.duration=3 epochs"
    assert commands(override) == (".[train]", f"runs/quickstart {override}")
    cuda = commands("w", override, "--extra", "cuda")
    assert cuda == (".[train,cuda]", f"w {override}")


@pytest.mark.parametrize("words", [["--extra", "cude"], ["--extra"]])
def test_an_extra_that_is_not_there_is_one_line_and_status_2(words):
    error = error_of(run("launch/quickstart.sh", *words))
    assert error.startswith("--extra") and "cuda or tpu" in error


def test_a_local_pod_is_told_what_a_pod_is_told():
    done = run(
        "launch/local_pod.sh", "2", "--devices", "3", "--port", "99", "--dry-run"
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 2
    for i, line in enumerate(lines):
        assert "XLA_FLAGS=--xla_force_host_platform_device_count=3" in line
        assert "--config configs/quickstart.py --workdir runs/local_pod" in line
        assert line.endswith(f"--coordinator 127.0.0.1:99 --processes 2 --process {i}")


@pytest.mark.parametrize("arguments", [[], ["2", "--devices", "0"], ["2", "--port"]])
def test_a_local_pod_of_no_number_is_one_line_and_status_2(arguments):
    assert error_of(run("launch/local_pod.sh", *arguments))


def test_the_tests_of_the_oldest_libraries_are_there():
    text = (ROOT / "launch/oldest.sh").read_text()
    words = text.partition("set -- ")[2].partition("\nfi\n")[0]
    done = run("-c", f"printf '%s\\n' {words}")
    named = [word.partition("::") for word in done.stdout.split()]
    assert len(named) > 15
    assert [path for path, _, _ in named if not (ROOT / path).exists()] == []
    single = [(ROOT / path, f"def {test}(") for path, _, test in named if test]
    assert [head for path, head in single if head not in path.read_text()] == []


STUBS = {
    "launch/common.sh": """
supported=(3.13 3.12 3.11)
choose_python() {
  for minor in "$@"; do
    if [[ $THERE == *$minor* ]]; then
      PYTHON=py$minor version=$minor.0
      return
    fi
  done
  exit 2
}""",
    "launch/test.sh": """
[ "$PIP_CONSTRAINT" = "$PWD/.ci/constraints.txt" ] || exit 9
echo "ran $PYTHON $VENV $EXTRAS:" "$@"
[ "$PYTHON" != "$BAD" ]""",
}
WHOLE = "ran py3.13 .cache/venv-3.13 test,tpu: -rs"
SHORT = "ran py3.11 .cache/venv-3.11 test,torch: -rs -m torch or not slow"
ALONE = "ran py3.11 .cache/venv-3.11 test,torch,tpu: -rs"


@pytest.mark.parametrize(
    "there, failing, legs, statuses, status",
    [
        ("3.11 3.12 3.13", "", [WHOLE, SHORT], [0, 0], 0),
        ("3.11 3.13", "py3.11", [WHOLE, SHORT], [0, 1], 1),
        ("3.13", "", [WHOLE], [0], 1),
        ("3.11", "", [ALONE], [0], 0),
    ],
)
def test_ci_runs_both_legs_and_fails_if_one_does(
    there, failing, legs, statuses, status, tmp_path
):
    for name, text in STUBS.items() | {(".ci/run", (ROOT / ".ci/run").read_text())}:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    done = run(str(tmp_path / ".ci/run"), THERE=there, BAD=failing)
    lines = done.stdout.splitlines()
    assert [line for line in lines if line.startswith("ran ")] == legs
    ends = [line for line in lines if "exit status" in line]
    found = [int(re.search(r"exit status (\d+) after", line)[1]) for line in ends]
    assert found == statuses
    assert done.returncode == status
    assert ("PyTorch's tests were not run" in done.stdout) == (there == "3.13")
