"""The command `plan`: its answers, and one clear line where there is none."""

import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from test_bad_input import refusal

from vt_flax.cli import plan, startup
from vt_flax.plan import (
    compiled_step,
    machine,
    planning,
    tpu_compiler,
)
from vt_flax.plan.topology import parse_topology
from vt_flax.plan.tpu_compiler import has_tpu_compiler

pytestmark = pytest.mark.slow

CONFIGS = pathlib.Path(__file__).parents[2] / "configs"
IMAGENET = str(CONFIGS / "imagenet.py")
# As small as can be, so that the TPU compiler has little to do.
TINY = [
    *("--config", f"{IMAGENET}:resnet18"),
    *("--config.model.width=8", "--config.model.stage_sizes=[1,1,1,1]"),
    *("--config.data.image_size=32", "--config.data.augment=none"),
    *("--config.optimizer.name=sgd", "--config.ema.decay=0"),
]
needs_compiler = pytest.mark.skipif(
    not has_tpu_compiler(), reason='needs libtpu: pip install "jax[tpu]"'
)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """No plan of the user's is read or written."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))


@pytest.fixture
def compiler(monkeypatch):
    """Stands for the process of the compiler, as a shell script."""

    def install(script, folder):
        file = folder / "compiler.sh"
        file.write_text(f"#!/bin/sh\n{script}\n")
        file.chmod(0o755)
        monkeypatch.setattr(tpu_compiler, "has_tpu_compiler", lambda: True)
        monkeypatch.setattr(sys, "executable", str(file))

    return install


def lines_of(arguments, monkeypatch, capsys):
    """Returns the progress and the last line of a refused plan."""
    monkeypatch.setattr(sys, "argv", ["plan", *arguments])
    with pytest.raises(SystemExit) as stop:
        startup.run(plan.main)
    assert stop.value.code == 2
    *progress, last = capsys.readouterr().err.strip().splitlines()
    return progress, last


@pytest.mark.parametrize(
    "script,message",
    [
        ("kill -SEGV $$", "the TPU compiler has crashed (SIGSEGV)"),
        ("kill -KILL $$", "was killed (SIGKILL): this machine may lack memory"),
        (
            "echo 'F0101 1 a.cc:1] Check failed: x' >&2; echo ' @ 0x1' >&2;"
            " kill -ABRT $$",
            "has crashed (SIGABRT): F0101 1 a.cc:1] Check failed: x",
        ),
        (
            "echo 'a trace' >&2; echo 'Error: no such thing' >&2; exit 1",
            "no such thing",
        ),
        ("exit 3", "status 3"),
    ],
)
def test_a_compiler_that_fails(
    script, message, compiler, tmp_path, monkeypatch, capsys
):
    compiler(script, tmp_path)
    arguments = [*TINY, "--topology", "v5e:2x2"]
    progress, last = lines_of(arguments, monkeypatch, capsys)
    assert last.startswith("error: --topology v5e:2x2: ") and last.endswith(message)
    assert progress == [
        "v5e:2x2, batch 2,048: resnet18",
        "compiling 1 program for v5e:2x2: may take minutes",
    ]


@pytest.mark.parametrize(
    "version,name,old",
    [
        ("0.0.42.1", "v6e:2x2", True),
        ("0.0.42", "tpu7x:2x2x1", True),
        ("0.0.9", "v6e:2x2", True),
        ("0.0.42", "v5p:2x2x1", False),
        ("0.0.50", "v6e:2x2", False),
        ("0.1", "tpu7x:2x2x1", False),
    ],
)
def test_an_old_compiler(version, name, old, compiler, tmp_path, monkeypatch, capsys):
    """A line says so before it starts."""
    compiler("exit 3", tmp_path)
    monkeypatch.setattr(tpu_compiler, "libtpu_version", lambda: version)
    progress, _ = lines_of([*TINY, "--topology", name], monkeypatch, capsys)
    assert len(progress) == 2 + old
    if old:
        chip = name.split(":")[0]
        assert progress[1] == (
            f"libtpu {version} may be slow or crash for {chip}: install 0.0.50 or "
            'newer, by pip install -U "jax[tpu]" on Python 3.12 or newer'
        )


def test_progress(compiler, tmp_path, monkeypatch, capsys):
    compiler("sleep 0.5; exit 1", tmp_path)
    monkeypatch.setattr(tpu_compiler, "PROGRESS_SECONDS", 0.1)
    progress, _ = lines_of([*TINY, "--topology", "v5e:2x2"], monkeypatch, capsys)
    assert "v5e:2x2: 0 s so far" in progress


def test_one_that_fails_leaves_the_others(compiler, tmp_path, monkeypatch, capsys):
    answer = json.dumps([fake_costs()])
    script = f"if grep -q v6e; then kill -SEGV $$; fi; echo '{answer}'"
    compiler(script, tmp_path)
    topologies = ["--topology", "v6e:2x2", "v5e:2x2"]
    plan.main([*TINY, *topologies, "--chip", "8", "--format", "json"])
    found, failed = json.loads(capsys.readouterr().out)
    assert (found["topology"], found["batch"]) == ("v5e:2x2", 32)
    assert failed["topology"] == "v6e:2x2" and "SIGSEGV" in failed["problem"]
    plan.main([*TINY, *topologies, "--chip", "8"])
    assert "v6e:2x2: --topology v6e:2x2: the TPU comp" in capsys.readouterr().out


def fake_costs(peak=2**30):
    sizes = ("parameters", "optimizer", "averages", "batch", "teacher")
    return {
        "macs": 1e9,
        "forward": 10**6,
        "traffic": 4e8,
        "given": 1e8,
        "bytes": 5e8,
        "flops": 3e9,
        "memory": {"peak": peak, **dict.fromkeys(sizes, 0), "working": peak},
        "collectives": {
            "all-reduce": {"count": 3, "looped": 0, "bytes": 4e6, "sent": 6e6}
        },
        "unknown": 1,
        "recomputed": 2,
        "compile": 1.0,
    }


def test_a_sweep(monkeypatch, tmp_path, capsys):
    def compile_step(configs, name):
        (config,) = configs
        if config.batch_size == 256 and config.model.bn_group_size == 0:
            return [{"too_large": {"needed": 20 * 2**30, "available": 2**34}}]
        return [fake_costs(config.batch_size * 2**22)]

    monkeypatch.setattr(planning, "pod_costs", compile_step)
    chart = tmp_path / "charts" / "sweep.png"
    arguments = [*TINY, "--topology", "v5e:2x2", "--sweep", "batch=64,256"]
    arguments += [
        "bn_group_size=0,per_device",
        "--save",
        str(chart),
        "--host_rate",
        "500",
    ]
    plan.main([*arguments, "--format", "json"])
    rows = json.loads(capsys.readouterr().out)
    assert [
        (
            row["batch_size"],
            row["model.bn_group_size"],
            "4.00 GiB too much" in row.get("problem", ""),
        )
        for row in rows
    ] == [
        ("64", "0", False),
        ("64", "per_device", False),
        ("256", "per_device", False),
        ("256", "0", True),
    ]
    first = rows[0]
    assert first["memory_peak"] == 2**28 and first["chips"] == 4
    # 0.4 GB at 819 GB/s; four chips with their links along two axes; one host.
    assert first["bound_memory_seconds"] == pytest.approx(4e8 / 819e9)
    assert first["bound_interconnect_seconds"] == pytest.approx(6e6 / 100e9)
    assert first["bound_by"] == "input" and first["bound_seconds"] == 64 / 500
    assert first["bound_images_per_second_of_a_host"] == pytest.approx(500)
    # 400 epochs of ImageNet.
    hours = 400 * 1_281_167 / 500 / 3600
    assert first["bound_hours"] == pytest.approx(hours, rel=1e-4)
    assert first["bound_chip_hours"] == pytest.approx(4 * hours, rel=1e-4)
    with Image.open(chart) as image:
        assert (
            image.width > 1000 and (np.asarray(image.convert("L")) < 250).mean() > 0.1
        )

    plan.main(arguments)
    table = capsys.readouterr().out
    assert "per_device" in table and "4.00 GiB too much" in table
    assert "1 loops do not say" in table and "2 results twice" in table
    assert "1,281,167 (ImageNet's, published)" in table


def test_here(digits, monkeypatch, capsys):
    """Compiled, measured and compared on the devices that there are."""
    monkeypatch.setattr(planning, "SECONDS", 0.0)
    monkeypatch.setattr(machine, "SECONDS", 0.0)
    monkeypatch.setattr(machine, "PRODUCT_SECONDS", 0.0)
    monkeypatch.setattr(machine, "COPIED_BY_CPUS", 2**16)
    monkeypatch.setattr(machine, "REDUCED", 2**12)
    arguments = ["--config", str(CONFIGS / "quickstart.py"), "--topology", "here"]
    arguments += ["--config.model.width=8", "--config.model.stage_sizes=[1,1,1,1]"]
    arguments += [f"--config.data.data_dir={digits}", "--chip", "2"]
    plan.main([*arguments, "--measure", "--gbs", "8", "--format", "json"])
    (row,) = json.loads(capsys.readouterr().out)
    assert (row["chips"], row["hosts"], row["batch"]) == (8, 1, 16)
    assert row["measured_seconds"] > 0
    assert row["measured_images_per_second"] == pytest.approx(
        16 / row["measured_seconds"]
    )
    for name in ("bound", "estimate"):
        share = row[f"{name}_seconds"] / row["measured_seconds"]
        assert row[f"{name}_error"] == pytest.approx(share - 1)
    moved = row["main_memory_bytes"]
    assert row["compiler_bytes_per_image"] * 2 == pytest.approx(moved, rel=0.1)
    assert 0 < row["bound_memory_seconds"] < moved / 8e9
    assert row["estimate_seconds"] > moved / 8e9
    # The gradients: as many numbers as there are parameters, of 4 bytes.
    assert row["collectives"]["all-reduce"]["bytes"] > 0.8 * row["memory_parameters"]
    # 16 epochs of 1,437 digits.
    assert row["steps"] == round(16 * 1437 / 16)


@needs_compiler
def test_a_pod(monkeypatch, capsys):
    """The real compiler, and a second time without it."""
    arguments = [*TINY, "--topology", "v5e:2x2", "--chip", "16", "--format", "json"]
    plan.main(arguments)
    (row,) = json.loads(capsys.readouterr().out)
    assert (row["chips"], row["hosts"], row["batch"]) == (4, 1, 64)
    parts = ("parameters", "optimizer", "averages", "batch", "teacher", "working")
    assert row["memory_peak"] == sum(row[f"memory_{part}"] for part in parts)
    assert row["memory_batch"] >= 16 * 32 * 32 * 3
    # Momentum of sgd: parameters again, but not the running statistics.
    assert 0.9 < row["memory_optimizer"] / row["memory_parameters"] < 1
    # Backward twice the forward pass, but for the images and what is padding.
    assert 1.8 < row["macs_per_image"] / row["forward_macs_per_image"] < 3
    assert 2 * row["macs_per_image"] < row["compiler_flops_per_image"]
    assert 0 < row["main_memory_bytes_per_image"] < row["compiler_bytes_per_image"]
    (kind,) = row["collectives"]
    found = row["collectives"][kind]
    assert kind == "all-reduce" and found["looped"] == 0
    # Gradients, some of them as bfloat16, and statistics.
    assert (
        0.4 * row["memory_parameters"] < found["bytes"] < 1.2 * row["memory_parameters"]
    )
    assert found["sent"] == pytest.approx(1.5 * found["bytes"])

    monkeypatch.setattr(planning, "pod_costs", lambda *_: pytest.fail("compiled again"))
    plan.main(arguments)
    assert json.loads(capsys.readouterr().out) == [row]


@needs_compiler
def test_what_the_compiler_refuses(monkeypatch, capsys):
    arguments = [*TINY, "--topology", "v5e:3x3", "--chip", "8"]
    _, last = lines_of(arguments, monkeypatch, capsys)
    assert 'layout "v5e:3x3" is not divisible' in last
    assert last.count("--topology v5e:3x3") == 1


@needs_compiler
def test_devices_of_chips():
    """As many as the table says, by the names that it knows."""
    names = (
        *("v4:2x2x1", "v5p:2x2x1", "v5e:2x2", "v5e:1x1", "v6e:2x2"),
        *("tpu7x:1x1x1", "tpu7x:2x2x2"),
    )
    program = (
        "import json\n"
        "from vt_flax.plan.tpu_compiler import tpu_devices\n"
        f"found = [tpu_devices(name) for name in {names}]\n"
        "print(json.dumps([\n"
        "  (len(x), x[0].device_kind, len({d.process_index for d in x}))\n"
        "  for x in found\n"
        "]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | tpu_compiler.ENVIRONMENT,
        capture_output=True,
        text=True,
        check=True,
    )
    places = [parse_topology(name) for name in names]
    devices, kinds, hosts = zip(*json.loads(done.stdout), strict=True)
    assert devices == (4, 4, 4, 1, 4, 2, 16)
    assert devices == tuple(place.devices for place in places)
    assert hosts == tuple(place.hosts for place in places)
    for kind, place in zip(kinds, places, strict=True):
        assert kind in place.chip.kinds


def test_what_the_compiler_says_of_too_large_programs():
    """As libtpu has put it."""
    for told, gibs in {
        "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for "
        "HLO temporaries (21.50G) exceeds available HBM (15.75G).": (21.5, 15.75),
        "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in "
        "memory space hbm. Used 16385.5M of 15.75G hbm.": (16385.5 / 1024, 15.75),
        "RESOURCE_EXHAUSTED: E1000: CompileTimeHbmOom: Ran out of memory on HBM, the "
        "total memory required for HLO temporaries (3.52T) exceeds available HBM "
        "(94.74G). HLO module: jit_train_step.": (3.52 * 1024, 94.74),
        "RESOURCE_EXHAUSTED": (0, 0),
    }.items():
        found = compiled_step.read_sizes(told)
        assert found == {
            "needed": int(gibs[0] * 2**30),
            "available": int(gibs[1] * 2**30),
        }


@pytest.mark.parametrize(
    "arguments,message",
    [
        (["--topology", "v5e:2x2", "--chip", "0"], "--chip 0: must be at least 1"),
        (["--topology", "tpu7x:2x2x1", "--chip", "3"], "write a multiple of 2"),
        (["--topology", "v7x:2x2x1"], "; did you mean tpu7x:2x2x1?"),
        (["--topology", "v9:2x2"], "there is no chip 'v9' in the table"),
        (["--topology", "v5e:0x0"], "v5e:0x0: each side must be at least 1"),
        (["--topology", "v5e:0"], "v5e:0: each side must be at least 1"),
        (["--topology", "v4:2x2x00"], "v4:2x2x00: each side must be at least 1"),
        (["--topology", "v5e:2x2", "--sweep", "batch"], "--sweep batch: write KEY=a,b"),
        (
            ["--topology", "v5e:2x2", "--chip", "8", "--sweep", "batch=8"],
            "one or the other",
        ),
        (["--topology", "v5e:2x2", "--measure"], "--measure is for --topology here"),
        (["--topology", "v5e:2x2", "--tflops", "-1"], "--tflops -1.0: must be"),
        (["--topology", "v5e:2x2", "--host_rate", "inf"], "at least 0, and finite"),
        (
            ["--topology", "v5e:2x2", "--save", "chart.pdf"],
            "--save chart.pdf: the name",
        ),
        (["--topology", "v5e:2x2", "--config.data.augment=auto"], "autoaugment"),
        (["--topology", "v5e:2x2", "--config.batch_size=66"], "multiple of the 4 dev"),
        (["--topology", "v5e:2x2", "--config.model.widht=8"], "did you mean"),
    ],
)
def test_bad_input(arguments, message, monkeypatch, capsys):
    assert message in refusal(plan.main, [*TINY, *arguments], monkeypatch, capsys)


def test_without_a_tpu_compiler(monkeypatch, capsys):
    monkeypatch.setattr(tpu_compiler, "has_tpu_compiler", lambda: False)
    arguments = [*TINY, "--topology", "v5e:2x2"]
    _, last = lines_of(arguments, monkeypatch, capsys)
    assert last == 'error: --topology needs libtpu: pip install "jax[tpu]"'
