"""Where arrays lie on the mesh."""

import json
import os
import subprocess
import sys
import types

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from vt_flax.errors import UserError
from vt_flax.parallel import mesh as meshes
from vt_flax.plan.tpu_compiler import ENVIRONMENT, has_tpu_compiler


@pytest.mark.parametrize("fsdp", [1, 2, 4, 8])
def test_axes(fsdp):
    mesh = meshes.make_mesh(fsdp=fsdp)
    assert dict(mesh.shape) == {"data": 8 // fsdp, "fsdp": fsdp}
    assert {d.id for d in mesh.devices.flat} == {d.id for d in jax.devices()}


@pytest.mark.parametrize("fsdp", [0, 3, 16])
def test_fsdp_that_does_not_divide_the_devices(fsdp):
    with pytest.raises(UserError, match=f"fsdp {fsdp}: must divide the 8 devices"):
        meshes.make_mesh(fsdp=fsdp)


def test_devices_are_named_with_their_kind():
    def devices(platform, *kinds):
        pairs = [{"platform": platform, "device_kind": kind} for kind in kinds]
        return [types.SimpleNamespace(**pair) for pair in pairs]

    a100, l4 = "NVIDIA A100-SXM4-40GB", "NVIDIA L4"
    for found, text in (
        (devices("cpu", *["cpu"] * 8), "8 cpu devices"),
        (devices("gpu", a100), f"1 gpu device ({a100})"),
        (devices("gpu", l4, a100, l4), f"3 gpu devices ({a100}, {l4})"),
    ):
        assert meshes.name_devices(found) == text
    assert meshes.describe(meshes.make_mesh()) == "8 cpu devices"


def test_large_arrays_are_spread_along_their_longest_axis():
    mesh = meshes.make_mesh(fsdp=4)
    shapes = {
        "conv": ((3, 3, 128, 256), P(None, None, None, "fsdp")),
        "square": ((3, 3, 128, 128), P(None, None, None, "fsdp")),
        "wide": ((256, 128), P("fsdp")),
        "classes": ((512, 1001), P("fsdp")),
        "stem": ((7, 7, 3, 64), P()),  # small
        "scale": ((2048,), P()),
        "odd": ((999, 1001), P()),
        "step": ((), P()),
    }
    state = {
        name: jax.ShapeDtypeStruct(shape, np.float32)
        for name, (shape, _) in shapes.items()
    }
    found = meshes.state_sharding(mesh, state)
    assert {k: v.spec for k, v in found.items()} == {
        k: spec for k, (_, spec) in shapes.items()
    }
    alone = meshes.state_sharding(meshes.make_mesh(), state)
    assert {v.spec for v in alone.values()} == {P()}


def test_rows_are_what_the_devices_hold():
    mesh = meshes.make_mesh(fsdp=2)
    batch = {"x": np.arange(32) ** 2}
    array = meshes.to_global(batch, mesh)["x"]
    for shard in array.addressable_shards:
        np.testing.assert_array_equal(shard.data, batch["x"][shard.index])
    assert list(meshes.local_indices(mesh, 32)) == list(range(32))


def test_slices_are_joined_along_data_alone():
    """Two slices of four chips: the slower network carries no parameters."""
    chips = [
        types.SimpleNamespace(
            id=4 * s + i,
            slice_index=s,
            platform="cpu",
            device_kind="chip",
            process_index=s,
        )
        for s in range(2)
        for i in range(4)
    ]
    made = []
    original, meshes.Mesh = meshes.Mesh, lambda grid, *_, **__: made.append(grid)
    try:
        meshes.make_mesh(chips, fsdp=2)
        with pytest.raises(UserError, match="fsdp 8: must divide the 4 devices of a s"):
            meshes.make_mesh(chips, fsdp=8)
    finally:
        meshes.Mesh = original
    (grid,) = made
    assert grid.shape == (4, 2)
    assert all(len({d.slice_index for d in row}) == 1 for row in grid)
    assert [row[0].slice_index for row in grid] == [0, 0, 1, 1]


@pytest.mark.parametrize("topology", ["v5e:4x4", "v5p:2x2x4", "tpu7x:4x4x1"])
def test_hosts_of_a_torus_share_out_every_batch(topology):
    """A group's devices are neighbors; each row has one host, not always a run."""
    if not has_tpu_compiler():
        pytest.skip("needs libtpu (pip install 'jax[tpu]')")
    program = f"""
import json
from vt_flax.parallel.mesh import indices_by_process, make_mesh
from vt_flax.plan.tpu_compiler import tpu_devices
found = []
for fsdp in (1, 2, 4):
    mesh = make_mesh(tpu_devices({topology!r}), fsdp)
    coords = [[list(d.coords) for d in row] for row in mesh.devices]
    rows = {{i: r.tolist() for i, r in indices_by_process(mesh, 64).items()}}
    found.append([fsdp, coords, rows])
print(json.dumps(found))
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | ENVIRONMENT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    scattered = 0
    for fsdp, coords, rows in json.loads(done.stdout.splitlines()[-1]):
        assert len(rows) == 4  # hosts, of four chips
        assert sorted(sum(rows.values(), [])) == list(range(64))
        assert len({len(r) for r in rows.values()}) == 1
        scattered += any(r[-1] - r[0] >= len(r) for r in rows.values())
        for group in np.asarray(coords):
            steps = np.abs(np.diff(group, axis=0)).sum(-1)
            assert len(group) == fsdp and (steps <= 2).all()
    assert scattered
