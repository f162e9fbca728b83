"""Where arrays lie on the mesh."""

import json
import types

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P
from tpu_programs import needs_tpu_compiler, run_program

from vt_flax.errors import UserError
from vt_flax.parallel import mesh as meshes


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
    kinds = ["NVIDIA L4", "NVIDIA A100-SXM4-40GB", "NVIDIA L4"]
    devices = [types.SimpleNamespace(platform="gpu", device_kind=k) for k in kinds]
    mesh = types.SimpleNamespace(devices=np.asarray(devices))
    expected = "3 gpu devices (NVIDIA A100-SXM4-40GB, NVIDIA L4)"
    assert meshes.describe(mesh) == expected


def test_large_arrays_are_sharded_along_their_longest_axis():
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


def test_local_indices_are_what_the_devices_hold():
    mesh = meshes.make_mesh(fsdp=2)
    batch = {"x": np.arange(32) ** 2}
    array = meshes.to_global(batch, mesh)["x"]
    for shard in array.addressable_shards:
        np.testing.assert_array_equal(shard.data, batch["x"][shard.index])
    assert list(meshes.local_indices(mesh, 32)) == list(range(32))


def test_slices_are_joined_along_data_alone(monkeypatch):
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
    monkeypatch.setattr(meshes, "Mesh", lambda grid, *_, **__: made.append(grid))
    meshes.make_mesh(chips, fsdp=2)
    with pytest.raises(UserError, match="fsdp 8: must divide the 4 devices of a s"):
        meshes.make_mesh(chips, fsdp=8)
    (grid,) = made
    assert grid.shape == (4, 2)
    assert all(len({d.slice_index for d in row}) == 1 for row in grid)
    assert [row[0].slice_index for row in grid] == [0, 0, 1, 1]


@needs_tpu_compiler
def test_hosts_of_a_torus_share_every_batch():
    """Devices of an fsdp group are neighbors, and each example is of one host.

    The topologies have four hosts of four chips.
    """
    program = """
import itertools, json, sys
from vt_flax.parallel.mesh import local_indices, make_mesh
from vt_flax.plan.tpu_compiler import tpu_devices
found = []
for topology, fsdp in itertools.product(sys.argv[1:], (1, 2, 4)):
    mesh = make_mesh(tpu_devices(topology), fsdp)
    coords = [[list(d.coords) for d in row] for row in mesh.devices]
    rows = [local_indices(mesh, 64, process).tolist() for process in range(4)]
    found.append([fsdp, coords, rows])
print(json.dumps(found))
"""
    output = run_program(program, "v5e:4x4", "v5p:2x2x4", "tpu7x:4x4x1")
    scattered = 0
    for fsdp, coords, rows in json.loads(output.splitlines()[-1]):
        assert sorted(sum(rows, [])) == list(range(64))
        assert len({len(r) for r in rows}) == 1
        scattered += any(r[-1] - r[0] >= len(r) for r in rows)
        for group in np.asarray(coords):
            steps = np.abs(np.diff(group, axis=0)).sum(-1)
            assert len(group) == fsdp and (steps <= 2).all()
    assert scattered
