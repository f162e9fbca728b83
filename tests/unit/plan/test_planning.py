"""Plans: topologies, bounds by hand, what does not fit, sweeps."""

import dataclasses
import pathlib

import jax
import pytest

from vt_flax.errors import UserError
from vt_flax.plan import planning, report
from vt_flax.plan.cases import Case, Facts, find_facts, make_cases, parse_sweep
from vt_flax.plan.planning import make_plan, record
from vt_flax.plan.topology import CHIPS, Chip, Topology, parse_topology
from vt_flax.training.config import load_config

CONFIGS = pathlib.Path(__file__).parents[3] / "configs"
IMAGENET = str(CONFIGS / "imagenet.py")
GIB = 2**30
# Of a made-up step on a device.
COSTS = {
    "macs": 3e12,
    "forward_macs": 10**9,
    "traffic": 4e9,
    "arguments": 1e9,
    "bytes": 5e9,
    "memory": {
        **dict.fromkeys(("parameters", "optimizer", "ema", "batch"), GIB),
        **{"peak": 6 * GIB, "teacher": 0, "working": 2 * GIB},
    },
    "collectives": {
        "all-reduce": {"count": 2, "bytes": 8e6, "sent": 12e6},
        "all-gather": {"count": 1, "bytes": 4e6, "sent": 3e6},
    },
    "unknown_loops": 0,
}


def case_on(place, batch=512):
    words = [f"--config.batch_size={batch}", "--config.duration=1000 steps"]
    return Case(place, load_config(IMAGENET, words), Facts(0, 1000))


def test_bounds():
    chip = Chip("c", flops=1e14, memory=16 * GIB, bandwidth=5e11, link=1e9)
    place = Topology("c:4x4", chip, (4, 4))
    # Four links, to both sides along two axes.
    sending = 15e6 / 4e9
    expected = {
        "bound_compute_seconds": 0.06,
        "bound_memory_seconds": 0.008,
        "bound_interconnect_seconds": sending,
        "bound_seconds": 0.06,
        "estimate_seconds": 0.06 + 0.008 + sending,
    }

    def times(place):
        found = record(case_on(place), COSTS)
        assert found["bound_by"] == "compute"
        return {key: found[key] for key in expected}

    assert times(place) == pytest.approx(expected)
    # Caches can hide all traffic but that of arguments and results.
    cached = dataclasses.replace(place, chip=dataclasses.replace(chip, cached=True))
    assert times(cached) == pytest.approx(expected | {"bound_memory_seconds": 0.002})
    # A single chip sends nothing.
    single = record(case_on(parse_topology("v5e:1x1")), COSTS)
    assert single["bound_interconnect_seconds"] == 0


def test_a_chip_of_two_devices():
    """A device has half of its chip's compute and memory; the links are the chip's."""
    case = case_on(parse_topology("tpu7x:2x2x1"), batch=128)
    row = record(case, COSTS)
    assert (row["chips"], row["devices"], row["hosts"]) == (4, 8, 1)
    assert 94 * GIB < row["memory_available"] < 96 * GIB
    assert row["macs_per_image"] == round(3e12 / 16)
    seconds = 6e12 / 1153.5e12
    assert row["bound_seconds"] == pytest.approx(seconds)
    assert row["bound_memory_seconds"] == pytest.approx(4e9 / 3690e9)
    assert row["bound_interconnect_seconds"] == pytest.approx(15e6 / 200e9)
    assert row["bound_images_per_second_of_a_chip"] == pytest.approx(32 / seconds)
    assert row["bound_chip_hours"] == pytest.approx(4 * 1000 * seconds / 3600)
    cells = {line[""]: line["it"] for line in report.columns({"it": row})}
    assert cells["memory_peak"] == "6,442.5 MB" and cells["devices"] == "8"
    assert cells["bound_compute_seconds"] == "5.20 ms"
    assert cells["all-reduce"] == "2 of 8.0 MB; a chip sends 12.0 MB"
    assert "shared by 2 JAX devices" in "".join(report.notes([case]))


@pytest.mark.parametrize(
    "name,chips,hosts,interconnect",
    [
        ("tpu7x:2x2x1", 4, 1, 200e9),
        ("tpu7x:4x4x4", 64, 16, 600e9),
        ("v5e:2x4", 8, 1, 150e9),
        ("v5e:16x16", 256, 64, 200e9),
        ("v5p:2x2x2", 8, 2, 300e9),
    ],
)
def test_topologies(name, chips, hosts, interconnect):
    place = parse_topology(name)
    assert (place.chips, place.hosts) == (chips, hosts)
    assert place.interconnect == interconnect
    assert place.devices == chips * (2 if name.startswith("tpu7x") else 1)


def test_published_figures():
    """A chip's links together carry, both ways, what is published of it in GB/s."""
    published = {
        # Links in a large slice; GB/s of all both ways; TFLOP/s; GB; GB/s of HBM.
        "v4": (6, 600, 275, 32, 1200),
        "v5e": (4, 400, 197, 16, 819),
        "v5p": (6, 1200, 459, 96, 2765),
        "v6e": (4, 800, 918, 32, 1638),
        "tpu7x": (6, 1200, 2307, 192, 7380),
    }
    assert set(CHIPS) == set(published)
    for name, (links, both_ways, teraflops, gigabytes, bandwidth) in published.items():
        chip = CHIPS[name]
        assert 2 * links * chip.link == both_ways * 1e9
        assert chip.flops == teraflops * 1e12
        assert chip.bandwidth == bandwidth * 1e9
        assert 0.95 < chip.memory / (gigabytes * GIB) < 1


@pytest.mark.parametrize(
    "name,message",
    [
        ("v5e", "write CHIP:AxB"),
        ("v5:2x2", "did you mean v5p or v5e"),
        ("v9:2x2", "there is no chip 'v9' in the table"),
        ("v4:2x2x00", "v4:2x2x00: each side must be at least 1"),
    ],
)
def test_bad_topologies(name, message):
    with pytest.raises(UserError, match=message):
        parse_topology(name)


def cases(*overrides, sweep=(), names=("v5e:2x2",), chip=None, file=IMAGENET):
    return make_cases(file, overrides, names, parse_sweep(sweep), chip, 1000)


def test_a_case_derives_from_its_batch_size(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        "from ml_collections import ConfigDict\n"
        "def get_config():\n"
        "  config = ConfigDict({'batch_size': 256, 'data': {'name': 'imagenet2012'}})\n"
        "  config.grad_accum_steps = config.get_ref('batch_size') // 128\n"
        "  return config\n"
    )
    (case,) = cases("--config.seed=3", chip=256, file=str(file))
    assert case.batch == case.config.batch_size == 4 * 256
    assert case.config.grad_accum_steps == 8 and case.config.seed == 3
    with pytest.raises(UserError, match="one or the other"):
        cases(chip=8, sweep=["batch=8"])
    with pytest.raises(UserError, match="--chip 3: a tpu7x chip is 2 JAX devices"):
        cases(names=("tpu7x:2x2x1",), chip=3)


def test_sweeps():
    assert parse_sweep([]) == [{}]
    assert parse_sweep(["batch=64,128", "model.stage_sizes=[1,1,1,1],[2,2,2,2]"]) == [
        {"batch_size": "64", "model.stage_sizes": "[1,1,1,1]"},
        {"batch_size": "64", "model.stage_sizes": "[2,2,2,2]"},
        {"batch_size": "128", "model.stage_sizes": "[1,1,1,1]"},
        {"batch_size": "128", "model.stage_sizes": "[2,2,2,2]"},
    ]
    for words in (["batch="], ["=3"], ["bn_group_size=8", "model.bn_group_size=9"]):
        with pytest.raises(UserError, match="--sweep"):
            parse_sweep(words)


def test_cases_of_a_sweep():
    found = cases(
        sweep=["batch=64,128", "bn_group_size=0,per_device"],
        names=("v5e:2x2", "tpu7x:2x2x1"),
    )
    assert len(found) == 8
    assert {
        (case.place.name, case.batch, case.config.model.bn_group_size) for case in found
    } == {
        (name, batch, size)
        for name, devices in (("v5e:2x2", 4), ("tpu7x:2x2x1", 8))
        for batch in (64, 128)
        for size in (0, batch // devices)
    }
    assert found[2].label == "v5e:2x2, batch_size 64, model.bn_group_size per_device"
    with pytest.raises(UserError, match="did you mean model.bn_group_size"):
        cases(sweep=["model.bn_group_siz=8"])


def test_facts(digits):
    config = load_config(IMAGENET)
    assert find_facts(config) == (1_281_167, 1000)
    assert find_facts(config, 7) == (7, 1000)
    sliced = load_config(IMAGENET, ["--config.data.train_split=train[:9%]"])
    assert find_facts(sliced).examples == 0
    words = [f"--config.data.data_dir={digits}"]
    assert find_facts(load_config(str(CONFIGS / "quickstart.py"), words)) == (1437, 10)
    # Datasets that are not there.
    unknown = ["--config.data.name=imagenot"]
    with pytest.raises(UserError, match=r"imagenot.*set model\.num_classes"):
        find_facts(load_config(IMAGENET, unknown))
    words = [*unknown, "--config.model.num_classes=20"]
    assert find_facts(load_config(IMAGENET, words)) == (0, 20)


def test_a_step_that_does_not_fit(monkeypatch):
    """The compiler's message says by how much."""
    text = "RESOURCE_EXHAUSTED: Used 18.2G of 15.75G hbm.\nDetails"

    def refuse(step):
        raise jax.errors.JaxRuntimeError(text)

    monkeypatch.setattr(planning, "tpu_devices", lambda name: jax.devices()[:4])
    monkeypatch.setattr(planning, "read_costs", refuse)
    (case,) = cases(chip=16)
    with pytest.raises(UserError, match="v5e:2x2, batch 64: .* 18.2G of 15.75G hbm"):
        make_plan(case)
