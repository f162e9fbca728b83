"""Checkpoints that were damaged on the disk."""

import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vt_flax.errors import UserError
from vt_flax.parallel.mesh import make_mesh, state_sharding
from vt_flax.training.checkpoint import (
    CONFIG_FILE,
    DAMAGED,
    Checkpoints,
    abstract_like,
    fingerprint,
    read_config,
    write_config,
)
from vt_flax.training.config import default_config
from vt_flax.training.state import TrainState


def state_of(step: int) -> TrainState:
    rng = np.random.default_rng(step)
    return TrainState(
        step=jnp.asarray(step, jnp.int32),
        params={"w": jnp.asarray(rng.normal(size=(40, 30)), jnp.float32)},
        batch_stats={"mean": jnp.asarray(rng.normal(size=7), jnp.float32)},
        opt_state=(jnp.asarray(rng.normal(size=(40, 30)), jnp.bfloat16), ()),
        ema_params={},
        ema_batch_stats={},
        key=jnp.asarray([step, 7], jnp.uint32),
    )


LIKE = abstract_like(state_of(0), state_sharding(make_mesh(), state_of(0)))


def same(found: TrainState, expected: TrainState) -> bool:
    pairs = zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True)
    return all(np.array_equal(a, b) for a, b in pairs)


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> pathlib.Path:
    workdir = tmp_path_factory.mktemp("written")
    checkpoints = Checkpoints(workdir, keep=3)
    for step in (1, 2, 3):
        checkpoints.save(step, state_of(step), [{"loss": 0.1 * step}])
    checkpoints.close()
    return workdir


def truncate(file):
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def zero(file):
    file.write_bytes(bytes(file.stat().st_size))


def flip(file):
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 16
    file.write_bytes(content)


@pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("damage", [truncate, zero, flip, pathlib.Path.unlink])
def test_whatever_is_damaged_nothing_wrong_is_restored(damage, written, tmp_path):
    """Each file of the newest: it is restored as it was, or the one before it is."""
    newest = written / "checkpoints" / "3"
    files = [p.relative_to(newest) for p in newest.rglob("*") if p.is_file()]
    assert len(files) > 8
    passed_over = 0
    for i, name in enumerate(files):
        workdir = tmp_path / str(i)
        shutil.copytree(written, workdir)
        damage(workdir / "checkpoints" / "3" / name)
        checkpoints = Checkpoints(workdir, keep=3)
        found = checkpoints.restore_newest(LIKE)
        step = 2 if found.damaged else 3
        assert same(found.state, state_of(step)), name
        assert found.window == [{"loss": 0.1 * step}]
        if found.damaged:
            passed_over += 1
            assert found.damaged.keys() == {3}
            assert f"checkpoint 3 in {workdir} cannot be restored" in found.damaged[3]
        checkpoints.close()
    assert passed_over >= 4


def test_a_single_bit_is_noticed():
    state = state_of(5)
    before = fingerprint(state)
    generator = np.random.default_rng(0)
    for name in ("params", "opt_state", "key"):
        for _ in range(20):
            leaves, tree = jax.tree.flatten(getattr(state, name))
            raw = np.asarray(leaves[0]).copy()
            words = raw.view(np.uint8).reshape(-1)
            words[generator.integers(words.size)] ^= np.uint8(
                1 << generator.integers(8)
            )
            changed = state.replace(**{name: tree.unflatten([raw, *leaves[1:]])})
            after = fingerprint(changed)
            assert sum(after[k] != before[k] for k in before) == 1


def test_the_sum_is_what_numpy_makes_of_the_bits():
    value = np.random.default_rng(0).normal(size=(5, 7)).astype(np.float32)
    words = value.view(np.uint32).astype(object).ravel()
    expected = sum(int(w) * (2 * i + 1) for i, w in enumerate(words)) % 2**32
    assert list(fingerprint({"a": value}).values()) == [expected]


def test_a_damaged_one_is_set_aside_and_its_step_saved_again(written, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(written, workdir)
    for _ in range(2):
        for file in (workdir / "checkpoints" / "3" / "state").rglob("*"):
            if file.is_file():
                truncate(file)
        checkpoints = Checkpoints(workdir, keep=3)
        assert checkpoints.restore_newest(LIKE).damaged.keys() == {3}
        assert checkpoints.set_aside(3).is_dir()
        assert checkpoints.steps() == [1, 2]
        checkpoints.save(3, state_of(3))
        checkpoints.close()
        checkpoints = Checkpoints(workdir, keep=3)
        assert same(checkpoints.restore(LIKE, 3).state, state_of(3))
        checkpoints.close()
    # Both are kept for whoever wants to look.
    assert {p.name for p in (workdir / DAMAGED).iterdir()} == {"3", "3.1"}


def test_all_are_damaged(written, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(written, workdir)
    for file in (workdir / "checkpoints").rglob("*"):
        if file.is_file():
            truncate(file)
    checkpoints = Checkpoints(workdir, keep=3)
    with pytest.raises(UserError, match="none of 3 checkpoints can be restored"):
        checkpoints.restore_newest(LIKE)
    checkpoints.close()
    assert {p.name for p in (workdir / "checkpoints").iterdir()} >= {"1", "2", "3"}


def test_a_workdir_of_another_format_is_refused(tmp_path):
    write_config(tmp_path, default_config())
    assert read_config(tmp_path) == default_config().to_dict()
    file = tmp_path / CONFIG_FILE
    file.write_text(file.read_text().replace('"format": 3', '"format": 1'))
    with pytest.raises(UserError, match="format 1; this version reads 3: choose anoth"):
        read_config(tmp_path)
