"""Checkpoints that were damaged on the disk."""

import pathlib
import shutil
import subprocess
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


def zero(file):
    file.write_bytes(bytes(file.stat().st_size))


def flip(file):
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 16
    file.write_bytes(content)


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


def test_a_failed_read_is_one_error(tmp_path, monkeypatch):
    """Though other reads are under way when it fails."""
    rng = np.random.default_rng(0)
    arrays = {str(i): jnp.asarray(rng.normal(size=400)) for i in range(300)}
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, state_of(1).replace(params=arrays))
    checkpoints.close()
    files = (p for p in tmp_path.rglob("*") if p.is_file())
    truncate(max(files, key=lambda p: p.stat().st_size))
    others = []
    monkeypatch.setattr(sys, "unraisablehook", others.append)
    with pytest.raises(UserError) as error:
        read_checkpoint(tmp_path / "checkpoints" / "1")
    assert "\n" not in str(error.value) and not others


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


def test_a_fingerprint_is_a_weighted_sum_of_words():
    """On the devices as on the host, of arrays of each size of words."""
    value = np.random.default_rng(0).normal(size=(5, 7)).astype(np.float32)
    words = value.view(np.uint32).astype(object).ravel()
    expected = sum(int(w) * (2 * i + 1) for i, w in enumerate(words)) % 2**32
    assert list(fingerprint({"a": value}).values()) == [expected]
    state = state_of(9)
    assert fingerprint(state) == host_fingerprint(jax.device_get(state))


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
    record = RunRecord(default_config().to_dict(), ["a", "b"], [1, 0])
    record.write(tmp_path)
    assert read_run(tmp_path) == record
    file = tmp_path / CONFIG_FILE
    # Earlier versions had one more key.
    file.write_text(
        file.read_text().replace('"data": {', '"data": {"augment_kernel": 1,')
    )
    assert read_run(tmp_path) == record
    file.write_text(file.read_text().replace('"format": 5', '"format": 1'))
    with pytest.raises(UserError, match="format 1; this version reads 5: choose anoth"):
        read_run(tmp_path)


def test_the_best_are_kept_beside_the_newest(tmp_path):
    """By their metric; of equals the first, as a repeated run finds them again."""
    best = Checkpoints(tmp_path, keep=2, best=True)
    found = [
        best.save_if_best(step, state_of(step), metric)
        for step, metric in enumerate([10.0, 30.0, 20.0, 20.0, 15.0, 40.0], 1)
    ]
    assert found == [True, True, True, False, False, True]
    best.close()
    again = Checkpoints(tmp_path, keep=2, best=True)
    assert again.steps() == [2, 6] and again.best_step() == 6
    assert not again.save_if_best(6, state_of(6), 40.0)
    assert same(again.restore(LIKE, 2).state, state_of(2))
    again.close()
    assert Checkpoints(tmp_path, read_only=True).steps() == []


def test_a_run_that_has_gone_back_keeps_its_best_too(tmp_path):
    """From before a step that diverged, or because the newest were damaged."""
    best = Checkpoints(tmp_path, keep=2, best=True)
    assert best.save_if_best(8, state_of(8), 60.0)
    assert best.save_if_best(9, state_of(9), 70.0)
    best.close()
    best = Checkpoints(tmp_path, keep=2, best=True)
    assert not best.save_if_best(5, state_of(5), 50.0)
    assert best.save_if_best(6, state_of(6), 80.0)
    assert best.steps() == [6, 9] and best.best_step() == 6
    assert not best.save_if_best(9, state_of(1), 65.0)
    assert same(best.restore(LIKE, 9).state, state_of(9))
    assert best.save_if_best(9, state_of(2), 75.0)
    best.close()
    again = Checkpoints(tmp_path, keep=2, best=True)
    assert again.steps() == [6, 9] and again.best_step() == 6
    assert same(again.restore(LIKE, 9).state, state_of(2))
    again.close()


def test_a_checkpoint_of_a_step_before_the_newest_is_written(written, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(written, workdir)
    shutil.rmtree(workdir / "checkpoints" / "2")
    checkpoints = Checkpoints(workdir, keep=3)
    checkpoints.save(2, state_of(4))
    checkpoints.wait()
    assert same(checkpoints.restore(LIKE, 2).state, state_of(4))
    checkpoints.close()


def test_what_was_half_written_is_cleared_away(written, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(written, workdir)
    half = workdir / "checkpoints" / "7.orbax-checkpoint-tmp"
    shutil.copytree(workdir / "checkpoints" / "3", half)
    checkpoints = Checkpoints(workdir, keep=3)
    assert checkpoints.steps() == [1, 2, 3]
    checkpoints.save(4, state_of(4))
    checkpoints.close()
    assert not half.exists()


@pytest.mark.slow
def test_a_workdir_is_one_runs_at_a_time(tmp_path):
    with locked(tmp_path):
        program = (
            "import sys, pathlib; from vt_flax.training.workdir import locked\n"
            "with locked(pathlib.Path(sys.argv[1])): pass"
        )
        other = [sys.executable, "-c", program, str(tmp_path)]
        done = subprocess.run(other, capture_output=True, text=True)
        assert f"another run is at work in {tmp_path}" in done.stderr
    assert subprocess.run(other).returncode == 0


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
