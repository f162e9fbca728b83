"""Plans: bounds by hand, what does not fit, sweeps, what is kept."""

import dataclasses
import functools
import json
import pathlib

import pytest

from vt_flax.errors import UserError
from vt_flax.plan import cache, planning
from vt_flax.plan import report as plan_report
from vt_flax.plan.cache import PlanCache, cache_key
from vt_flax.plan.cases import find_facts, make_cases
from vt_flax.plan.planning import plan_pod
from vt_flax.plan.roofline import roofline
from vt_flax.plan.sweep import parse_sweep
from vt_flax.plan.topology import CHIPS, Chip, Topology, parse_topology
from vt_flax.training.config import load_config

CONFIGS = pathlib.Path(__file__).parents[3] / "configs"
IMAGENET = str(CONFIGS / "imagenet.py")
GIB = 2**30


def costs(**changes):
    """Of a made-up step on a device."""
    return {
        "macs": 3e12,
        "forward": 10**9,
        "traffic": 4e9,
        "given": 1e9,
        "bytes": 5e9,
        "flops": 7e12,
        "memory": {
            **dict.fromkeys(("parameters", "optimizer", "averages", "batch"), GIB),
            **{"peak": 6 * GIB, "teacher": 0, "working": 2 * GIB},
        },
        "collectives": {
            "all-reduce": {"count": 2, "looped": 0, "bytes": 8e6, "sent": 12e6},
            "all-gather": {"count": 1, "looped": 0, "bytes": 4e6, "sent": 3e6},
        },
        "unknown": 0,
        "recomputed": 0,
        "compile": 1.0,
    } | changes


def test_roofline():
    chip = Chip("c", flops=1e14, memory=16 * GIB, bandwidth=5e11, link=1e9, links=4)
    place = Topology("c:4x4", chip, (4, 4))
    bounds = roofline(costs(), place, 512, host_rate=1000.0)
    assert bounds.compute == pytest.approx(0.06)
    assert bounds.memory == bounds.moved == pytest.approx(0.008)
    # Four links, to both sides along two axes.
    assert bounds.interconnect == pytest.approx(15e6 / 4e9)
    assert bounds.input == pytest.approx(512 / (1000 * 16))
    assert (bounds.bound, bounds.limit) == (bounds.compute, "compute")
    assert bounds.in_turn == pytest.approx(0.06 + 0.008 + 0.00375)
    slow = roofline(costs(), place, 512, host_rate=10.0)
    assert slow.limit == "input" and slow.in_turn == slow.bound == slow.input
    # Of what a program moves, a cache may spare all but what it is given.
    cached = dataclasses.replace(place, chip=dataclasses.replace(chip, cached=True))
    bounds = roofline(costs(), cached, 512)
    assert bounds.memory == pytest.approx(0.002) and bounds.input == 0
    assert bounds.in_turn == pytest.approx(0.06 + 0.008 + 0.00375)


def test_roofline_of_half_a_chip():
    """A device has half of its chip's compute and memory; the links are the chip's."""
    bounds = roofline(costs(), parse_topology("tpu7x:2x2x1"), 512)
    assert bounds.compute == pytest.approx(2 * 3e12 / 1153.5e12)
    assert bounds.memory == pytest.approx(4e9 / 3690e9)
    assert bounds.interconnect == pytest.approx(15e6 / 200e9)


def test_alone_a_chip_sends_nothing():
    place = parse_topology("v5e:1x1")
    assert place.interconnect == 0
    assert roofline(costs(), place, 8).interconnect == 0


@pytest.mark.parametrize(
    "name,chips,hosts,interconnect",
    [
        ("tpu7x:1x1x1", 1, 1, 0),
        ("tpu7x:2x2x1", 4, 1, 200e9),
        ("tpu7x:2x2x2", 8, 2, 300e9),
        ("tpu7x:4x4x4", 64, 16, 600e9),
        ("v5e:2x2", 4, 1, 100e9),
        ("v5e:2x4", 8, 1, 150e9),
        ("v5e:4x4", 16, 4, 200e9),
        ("v5e:16x16", 256, 64, 200e9),
        ("v6e:16x16", 256, 64, 400e9),
        ("v4:2x2x1", 4, 1, 100e9),
        ("v4:4x4x4", 64, 16, 300e9),
        ("v5p:2x2x2", 8, 2, 300e9),
        ("v5p:4x4x8", 128, 32, 600e9),
    ],
)
def test_topologies(name, chips, hosts, interconnect):
    place = parse_topology(name)
    assert (place.chips, place.hosts) == (chips, hosts)
    assert place.interconnect == interconnect
    assert place.devices == chips * (2 if name.startswith("tpu7x") else 1)


def test_published_figures():
    """A chip's links together carry, both ways, what is published of it in GB/s."""
    both_ways = {"v4": 600, "v5e": 400, "v5p": 1200, "v6e": 800, "tpu7x": 1200}
    teraflops = {"v4": 275, "v5e": 197, "v5p": 459, "v6e": 918, "tpu7x": 2307}
    gigabytes = {"v4": 32, "v5e": 16, "v5p": 96, "v6e": 32, "tpu7x": 192}
    bandwidth = {"v4": 1200, "v5e": 819, "v5p": 2765, "v6e": 1638, "tpu7x": 7380}
    assert set(CHIPS) == set(both_ways)
    for name, chip in CHIPS.items():
        assert 2 * chip.links * chip.link == both_ways[name] * 1e9
        assert chip.flops == chip.single == teraflops[name] * 1e12
        assert chip.bandwidth == bandwidth[name] * 1e9
        assert 0.95 < chip.memory / (gigabytes[name] * GIB) < 1
        devices = 2 if name == "tpu7x" else 1
        assert chip.device.flops == chip.device.single == chip.flops / devices
        assert chip.device.bandwidth == chip.bandwidth / devices
        assert chip.device.memory == chip.memory // devices
        assert chip.source


@pytest.mark.parametrize(
    "name,message",
    [
        ("v5e", "write CHIP:AxB"),
        ("v5e:2x", "write CHIP:AxB"),
        ("v5:2x2", "did you mean v5p or v5e"),
        ("v7x:2x2x1", r"no chip 'v7x' in the table; did you mean tpu7x:2x2x1\?"),
        ("TPU7x:2x2x1", "did you mean tpu7x:2x2x1"),
        ("ironwood:4x4x4", "did you mean tpu7x:4x4x4"),
        ("v5litepod:4x4", "did you mean v5e:4x4"),
        ("Trillium:2x4", "did you mean v6e:2x4"),
    ],
)
def test_bad_topologies(name, message):
    with pytest.raises(UserError, match=message):
        parse_topology(name)


@pytest.fixture
def pod(monkeypatch):
    """A compiler of steps that take 1 GiB and 2 MiB for each example of a device."""
    asked = []

    def compile_step(configs, topology):
        (config,) = configs
        asked.append((config, topology))
        examples = config.batch_size // parse_topology(topology).devices
        peak = GIB + examples * 2**21
        if peak > 15.75 * GIB:
            return [{"too_large": {"needed": peak, "available": int(15.75 * GIB)}}]
        found = costs()
        return [found | {"memory": found["memory"] | {"peak": peak}}]

    monkeypatch.setattr(planning, "pod_costs", compile_step)
    return asked


def cases(*overrides, sweep=(), names=("v5e:2x2",), chip=0, examples=1000):
    def find(name, config):
        return parse_topology(name)

    places = [functools.partial(find, name) for name in names]
    points = parse_sweep(sweep)
    return make_cases(IMAGENET, overrides, places, points, chip, examples)


def test_a_plan(pod, tmp_path):
    (case,) = cases("--config.duration=3 epochs", chip=50)
    plan = plan_pod(case, PlanCache(tmp_path))
    assert case.batch == 200 and plan.steps == 15
    assert plan.images_per_second(plan.roofline.bound) == pytest.approx(
        200 / (6e12 / 197e12)
    )
    assert plan.hours(7200.0) == pytest.approx(30)
    ((config, topology),) = pod
    assert topology == "v5e:2x2" and config.model.num_classes == 1000


def test_chips_of_two_devices(pod, tmp_path):
    """Batches divide by devices; what is paid for are chips."""
    (case,) = cases("--config.duration=1000 steps", names=("tpu7x:2x2x1",), chip=32)
    plan = plan_pod(case, PlanCache(tmp_path))
    row = plan_report.record(plan)
    assert (row["batch"], row["chips"], row["devices"], row["hosts"]) == (128, 4, 8, 1)
    assert row["memory_peak"] == GIB + 16 * 2**21
    assert 94 * GIB < row["memory_available"] < 96 * GIB
    assert row["macs_per_image"] == round(3e12 / 16)
    seconds = 6e12 / 1153.5e12
    assert row["bound_seconds"] == pytest.approx(seconds)
    assert row["bound_images_per_second"] == pytest.approx(128 / seconds)
    assert row["bound_images_per_second_of_a_chip"] == pytest.approx(32 / seconds)
    assert row["bound_chip_hours"] == pytest.approx(4 * 1000 * seconds / 3600)
    told = {
        line["of a device and a step"]: line["tpu7x:2x2x1"]
        for line in plan_report.columns([plan])
    }
    assert told["chips; devices; hosts"] == "4; 8; 1"
    assert told["batch; a chip"] == "128; 32"
    assert "shared by 2 JAX devices" in "".join(plan_report.notes([plan]))
    (swept,) = plan_report.sweep_rows([plan])
    assert (swept["a chip"], swept["MB/image"]) == (32, round(4e9 / 16 / 1e6, 1))

    (case,) = cases("--config.batch_size=4", names=("tpu7x:2x2x1",))
    with pytest.raises(UserError, match="must be a multiple of the 8 devices"):
        plan_pod(case, PlanCache(tmp_path))
    with pytest.raises(UserError, match="--chip 3: a tpu7x chip is 2 JAX devices"):
        cases(names=("tpu7x:2x2x1",), chip=3)
    (case,) = cases(names=("tpu7x:2x2x1",), chip=2 * 16384)
    with pytest.raises(UserError, match=r"32,768 a chip\) needs 33.00 GiB of a dev"):
        plan_pod(case, PlanCache(tmp_path))


def test_a_case_derives_from_the_batch_size_that_it_is_for(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        "from ml_collections import ConfigDict\n"
        "def get_config():\n"
        "  config = ConfigDict({'batch_size': 256, 'data': {'name': 'imagenet2012'}})\n"
        "  config.grad_accum_steps = config.get_ref('batch_size') // 128\n"
        "  return config\n"
    )
    places = [lambda config: parse_topology("v5e:2x2")]
    for chip in (256, 32):
        (case,) = make_cases(str(file), ["--config.seed=3"], places, [{}], chip, 1000)
        config = case.config
        assert case.batch == config.batch_size == 4 * chip
        assert config.grad_accum_steps == 4 * chip // 128
        assert config.seed == 3


def test_what_was_compiled_is_kept(pod, tmp_path):
    (case,) = cases(chip=50)
    first = plan_pod(case, PlanCache(tmp_path))
    assert plan_pod(case, PlanCache(tmp_path)).costs == first.costs
    assert len(pod) == 1
    plan_pod(case, PlanCache(tmp_path, fresh=True))
    assert len(pod) == 2
    (file,) = tmp_path.iterdir()
    for damaged in ("", "{", "[]", '{"key": 1}', file.read_text()[:-9], "\x00"):
        file.write_text(damaged)
        assert plan_pod(case, PlanCache(tmp_path)).costs == first.costs
        assert json.loads(file.read_text())["costs"] == first.costs
    assert len(pod) == 8


def test_a_folder_that_cannot_be_written(pod, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    (case,) = cases(chip=50)
    plan_pod(case, PlanCache(tmp_path / "file" / "cache"))
    assert "nothing is kept there" in capsys.readouterr().err


def test_what_plans_are_kept_by(monkeypatch):
    def key(*overrides, topology="v5e:2x2"):
        return cache_key(load_config(IMAGENET, overrides), topology)

    same = ("--config.duration=1 epochs", "--config.data.data_dir=/x")
    assert key() == key(*same)
    assert key() != key(topology="v5e:2x4")
    for other in ("batch_size=64", "data.augment=none", "model.bn_group_size=8"):
        assert key() != key(f"--config.{other}")
    before = key()
    monkeypatch.setenv("LIBTPU_INIT_ARGS", "--x=1")
    assert key() != before
    monkeypatch.delenv("LIBTPU_INIT_ARGS")
    monkeypatch.setattr(cache, "libtpu_version", lambda: "9.9")
    assert key() != before


def test_too_large(pod, tmp_path):
    (case,) = cases(chip=16384)
    with pytest.raises(UserError) as error:
        plan_pod(case, PlanCache(tmp_path))
    assert str(error.value).startswith(
        "--topology v5e:2x2: batch 65,536 (16,384 a chip) needs 33.00 GiB of a "
        "device's 15.75, 17.25 GiB too much"
    )
    # Compiling takes minutes: that it does not fit is kept too.
    with pytest.raises(UserError, match="17.25 GiB too much"):
        plan_pod(case, PlanCache(tmp_path))
    assert len(pod) == 1


def test_sweeps():
    assert parse_sweep([]) == [{}]
    assert parse_sweep(["batch=64,128", "model.stage_sizes=[1,1,1,1],[2,2,2,2]"]) == [
        {"batch_size": "64", "model.stage_sizes": "[1,1,1,1]"},
        {"batch_size": "64", "model.stage_sizes": "[2,2,2,2]"},
        {"batch_size": "128", "model.stage_sizes": "[1,1,1,1]"},
        {"batch_size": "128", "model.stage_sizes": "[2,2,2,2]"},
    ]
    for words in (
        ["batch"],
        ["batch="],
        ["=3"],
        ["bn_group_size=8", "model.bn_group_size=9"],
    ):
        with pytest.raises(UserError, match="--sweep"):
            parse_sweep(words)


def test_cases_of_a_sweep(pod):
    found = cases(
        sweep=["batch=64,128", "bn_group_size=0,per_device"],
        names=("v5e:2x2", "v5e:4x4", "tpu7x:2x2x1"),
    )
    assert len(found) == 12
    found_sizes = {
        (case.place.name, case.batch, case.config.model.bn_group_size) for case in found
    }
    assert found_sizes == {
        (name, batch, size)
        for name, devices in (("v5e:2x2", 4), ("v5e:4x4", 16), ("tpu7x:2x2x1", 8))
        for batch in (64, 128)
        for size in (0, batch // devices)
    }
    assert found[3].label == "v5e:2x2, batch_size 64, model.bn_group_size per_device"
    with pytest.raises(UserError, match="did you mean model.bn_group_size"):
        cases(sweep=["model.bn_group_siz=8"])
    # Only the group size is of a device.
    with pytest.raises(UserError, match="grad_accum_steps"):
        cases(sweep=["grad_accum_steps=per_device"])


def test_formulations_are_planned_by_a_sweep(pod, tmp_path):
    def notes(found):
        plans = [plan_pod(case, PlanCache(tmp_path)) for case in found]
        return [x for x in plan_report.notes(plans) if "formulation" in x]

    (line,) = notes(cases(chip=8))
    assert line.startswith("model.formulation=auto is planned as printed; ")
    # As the line says.
    assert notes(cases(sweep=line.split("--sweep ")[1:], chip=8)) == []
    planned = [config.model.formulation for config, _ in pod]
    assert planned == ["auto", "printed", "folded", "fused"]


def test_facts(digits):
    config = load_config(IMAGENET)
    assert find_facts(config).examples == 1_281_167
    assert find_facts(config).classes == 1000
    assert find_facts(config, 7).examples == 7
    sliced = load_config(IMAGENET, ["--config.data.train_split=train[:9%]"])
    assert find_facts(sliced).examples == 0
    small = load_config(
        str(CONFIGS / "quickstart.py"), [f"--config.data.data_dir={digits}"]
    )
    facts = find_facts(small)
    assert (facts.examples, facts.classes) == (1437, 10)
    unknown = load_config(IMAGENET, ["--config.data.name=imagenot"])
    with pytest.raises(UserError, match="imagenot"):
        find_facts(unknown)


def test_facts_of_masks():
    """Of a dataset that is not there."""
    file = str(CONFIGS / "segmentation.py")
    with pytest.raises(UserError, match="set model.num_classes"):
        find_facts(load_config(f"{file}:lip,fpn"))
    given = ["--config.model.num_classes=20"]
    facts = find_facts(load_config(f"{file}:lip,fpn", given))
    assert (facts.examples, facts.classes) == (0, 20)
