"""Checkpoints: what is restored, kept, and set aside when damaged."""

import pathlib
import shutil
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src import config

from vt_flax.errors import UserError
from vt_flax.parallel import processes
from vt_flax.parallel.mesh import make_mesh, state_sharding
from vt_flax.training.checkpoint import DAMAGED, Checkpoints, read_checkpoint
from vt_flax.training.config import default_config
from vt_flax.training.fingerprint import fingerprint, host_fingerprint
from vt_flax.training.state import TrainState, abstract_like
from vt_flax.training.workdir import CONFIG_FILE, RunRecord, locked, read_run


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


def test_the_guard_of_training_lets_a_save_fetch_arrays(tmp_path, monkeypatch):
    """Read from JAX: nothing is copied from a CPU, so that there the guard is idle."""
    checkpoints, guards = Checkpoints(tmp_path, keep=1), []
    save = checkpoints._manager.save

    def recorded(*args, **named):
        guards.append(config.transfer_guard_device_to_host.value)
        return save(*args, **named)

    monkeypatch.setattr(checkpoints._manager, "save", recorded)
    state = state_of(1)
    with jax.transfer_guard("disallow"):
        checkpoints.save(1, state)
    checkpoints.close()
    assert guards == ["allow"]


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


def flip(file):
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 16
    file.write_bytes(content)


@pytest.mark.parametrize("damage", [truncate, flip, pathlib.Path.unlink])
def test_no_damaged_content_is_restored(damage, written, tmp_path):
    """Whatever file of the newest is damaged: it is restored intact, or the one before.

    Each damage takes every second file, to save time.
    """
    newest = written / "checkpoints" / "3"
    files = sorted(p.relative_to(newest) for p in newest.rglob("*") if p.is_file())
    assert len(files) > 8
    files = files[1::2] if damage is truncate else files[::2]
    rejected = 0
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
            rejected += 1
            assert found.damaged.keys() == {3}
            assert f"checkpoint 3 in {workdir} cannot be restored" in found.damaged[3]
        checkpoints.close()
    assert rejected >= 1


def test_what_does_not_fit_is_not_restored(written, monkeypatch):
    """Another model's checkpoint, and one that another process cannot read."""
    checkpoints = Checkpoints(written, read_only=True)
    other = LIKE.replace(params={"w": jax.ShapeDtypeStruct((30, 40), jnp.float32)})
    with pytest.raises(UserError, match=r"\(params/w has another shape\)"):
        checkpoints.restore(other, 3)
    with pytest.raises(UserError, match="checkpoint 3 in .* cannot be restored"):
        checkpoints.restore(LIKE.replace(params={"v": LIKE.params["w"]}), 3)
    monkeypatch.setattr(processes, "gather", lambda name, problem: [problem, "gone"])
    with pytest.raises(UserError, match=r"cannot be restored \(gone\)"):
        checkpoints.restore(LIKE, 3)


def test_a_failed_read_prints_nothing_else(tmp_path, monkeypatch):
    """Though other reads are under way when it fails."""
    rng = np.random.default_rng(0)
    arrays = {str(i): jnp.asarray(rng.normal(size=400)) for i in range(300)}
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, state_of(1).replace(params=arrays))
    checkpoints.close()
    files = (p for p in tmp_path.rglob("*") if p.is_file())
    truncate(max(files, key=lambda p: p.stat().st_size))
    tracebacks = []
    monkeypatch.setattr(sys, "unraisablehook", tracebacks.append)
    with pytest.raises(UserError):
        read_checkpoint(tmp_path / "checkpoints" / "1")
    assert not tracebacks


def test_fingerprints_differ_by_a_single_bit():
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


def test_a_fingerprint_is_a_weighted_sum_of_words():
    """On the devices as on the host, of arrays of each size of words."""
    value = np.random.default_rng(0).normal(size=(5, 7)).astype(np.float32)
    words = value.view(np.uint32).astype(object).ravel()
    expected = sum(int(w) * (2 * i + 1) for i, w in enumerate(words)) % 2**32
    assert list(fingerprint({"a": value}).values()) == [expected]
    state = state_of(9)
    assert fingerprint(state) == host_fingerprint(jax.device_get(state))


def test_a_step_that_was_set_aside_is_saved_again(written, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(written, workdir)
    (workdir / DAMAGED / "3").mkdir(parents=True)
    checkpoints = Checkpoints(workdir, keep=3)
    assert checkpoints.set_aside(3) == workdir / DAMAGED / "3.1"
    assert checkpoints.steps() == [1, 2]
    checkpoints.save(3, state_of(5))
    checkpoints.wait()
    assert same(checkpoints.restore(LIKE, 3).state, state_of(5))
    checkpoints.close()


def test_all_are_damaged(written, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(written, workdir)
    for file in (workdir / "checkpoints").rglob("state/*"):
        if file.is_file():
            truncate(file)
    checkpoints = Checkpoints(workdir, keep=3)
    with pytest.raises(UserError, match="none of 3 checkpoints can be restored"):
        checkpoints.restore_newest(LIKE)
    checkpoints.close()


def test_a_workdir_of_another_format_is_refused(tmp_path):
    record = RunRecord(default_config().to_dict(), ["a", "b"], [1, 0])
    record.write(tmp_path)
    assert read_run(tmp_path) == record
    file = tmp_path / CONFIG_FILE
    file.write_text(file.read_text().replace('"format": 5', '"format": 1'))
    with pytest.raises(UserError, match="format 1; this version reads 5: choose anoth"):
        read_run(tmp_path)


def test_the_best_are_kept(tmp_path):
    """By their metric; of equal ones the first, which a repeated run finds again."""
    best = Checkpoints(tmp_path, keep=2, best=True)
    for step, metric in enumerate([10.0, 30.0, 20.0, 20.0, 15.0, 40.0], 1):
        best.save_if_best(step, state_of(step), metric)
    best.close()
    again = Checkpoints(tmp_path, keep=2, best=True)
    assert again.steps() == [2, 6] and again.best_step() == 6
    assert same(again.restore(LIKE, 2).state, state_of(2))
    # A run that goes on from an older checkpoint repeats steps, and may measure others.
    again.save_if_best(6, state_of(1), 35.0)
    assert same(again.restore(LIKE, 6).state, state_of(6))
    again.save_if_best(2, state_of(3), 50.0)
    assert same(again.restore(LIKE, 2).state, state_of(3))
    assert again.steps() == [2, 6] and again.best_step() == 2
    assert not any((tmp_path / DAMAGED).iterdir())
    again.close()


def test_a_crash_while_a_best_checkpoint_is_replaced_loses_neither(
    tmp_path, monkeypatch
):
    best = Checkpoints(tmp_path, best=True)
    best.save_if_best(9, state_of(9), 70.0)

    def crash(*args, **named):
        raise KeyboardInterrupt

    monkeypatch.setattr(best, "save", crash)
    with pytest.raises(KeyboardInterrupt):
        best.save_if_best(9, state_of(2), 75.0)
    best.close()
    assert same(read_checkpoint(tmp_path / DAMAGED / "9", LIKE).state, state_of(9))


def test_a_checkpoint_of_a_step_before_the_newest_is_written(written, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(written, workdir)
    shutil.rmtree(workdir / "checkpoints" / "2")
    checkpoints = Checkpoints(workdir, keep=3)
    checkpoints.save(2, state_of(4))
    checkpoints.wait()
    assert same(checkpoints.restore(LIKE, 2).state, state_of(4))
    checkpoints.close()


def test_half_a_checkpoint_is_removed(written, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(written, workdir)
    half = workdir / "checkpoints" / "7.orbax-checkpoint-tmp"
    shutil.copytree(workdir / "checkpoints" / "3", half)
    checkpoints = Checkpoints(workdir, keep=3)
    assert checkpoints.steps() == [1, 2, 3]
    checkpoints.save(4, state_of(4))
    checkpoints.close()
    assert not half.exists()


def test_one_run_at_a_time_has_a_workdir(tmp_path):
    with locked(tmp_path):
        with pytest.raises(UserError, match=f"another run is at work in {tmp_path}"):
            locked(tmp_path).__enter__()
    with locked(tmp_path):
        pass


@pytest.mark.slow
@pytest.mark.parametrize("fsdp", [1, 4])
def test_a_state_is_restored_to_other_devices(fsdp, tmp_path):
    """Written by eight devices, over `fsdp`; read by one, by two, and by eight."""
    large = np.random.default_rng(0).normal(size=(256, 128)).astype(np.float32)
    state = state_of(1).replace(params={"w": large, "odd": np.float32([1, 2, 3])})

    def placed(devices, fsdp):
        mesh = make_mesh(jax.devices()[:devices], fsdp)
        return abstract_like(state, state_sharding(mesh, state))

    like = placed(8, fsdp)
    written = jax.device_put(state, jax.tree.map(lambda x: x.sharding, like))
    assert len(written.params["w"].sharding.device_set) == 8
    assert written.params["w"].is_fully_replicated == (fsdp == 1)
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, written)
    checkpoints.wait()
    for devices, over in ((1, 1), (2, 2), (8, 8)):
        found = checkpoints.restore_newest(placed(devices, over))
        assert not found.damaged and same(found.state, state)
        assert len(found.state.params["w"].sharding.device_set) == devices
    checkpoints.close()
