"""Shares of a training step by kind of work."""

import pytest

from vt_flax.cli import benchmark
from vt_flax.measure.profile import shares
from vt_flax.plan import machine
from vt_flax.plan.hlo import Program

PROGRAM = """HloModule step

%inner (p: f32[2,2]) -> f32[2,2] {
  %p = f32[2,2]{1,0} parameter(0)
  ROOT %d = f32[2,2]{1,0} dot(%p, %p), metadata={op_name="jit(s)/transpose(jvp(N))/d"}
}

%moving (q: f32[2,2]) -> f32[2,2] {
  %q = f32[2,2]{1,0} parameter(0)
  ROOT %t = f32[2,2]{0,1} transpose(%q), dimensions={1,0}
}

ENTRY %main (x: f32[2,2]) -> f32[2,2] {
  %x = f32[2,2]{1,0} parameter(0)
  %a = f32[2,2]{1,0} add(%x, %x), metadata={op_name="jit(s)/jvp(N)/first"}
  %b = f32[2,2]{1,0} multiply(%a, %x), metadata={op_name="jit(s)/jvp(N)/second"}
  %f = f32[2,2]{1,0} fusion(%b), kind=kCustom, calls=%inner
  ROOT %m = f32[2,2]{1,0} fusion(%f), kind=kLoop, calls=%moving
}
"""


def test_shares():
    times = {"a": 1e-3, "b": 2e-3, "f": 5e-3, "m": 2e-3, "another": 9.0}
    rows = [tuple(row.values()) for row in shares(Program(PROGRAM), times)]
    assert rows == [
        ("products of matrices", "backward", 5.0, 0.5, "transpose(jvp(N))/d", 0.5),
        ("element by element, and sums", "forward", 3.0, 0.3, "jvp(N)/second", 0.2),
        ("moves", "the rest", 2.0, 0.2, "m", 0.2),
    ]


# Of a type of JAX 0.12's own, on Python 3.13: as an error it would end the process.
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:builtin type event_stats:DeprecationWarning")
def test_a_real_step(tmp_path, monkeypatch, capsys):
    """Convolutions of both passes are seen, and the folder holds the trace."""
    monkeypatch.setattr(machine, "SECONDS", 0.0)
    small = ["--config.model.width=4", "--config.data.image_size=32"]
    benchmark.main(
        ["profile", "--config", "configs/imagenet.py:resnet18", "--trace"]
        + [str(tmp_path), "--batch", "8", "--steps", "1", "--format", "json", *small]
        + ["--config.data.augment=none", "--config.model.stage_sizes=[1,1,1,1]"]
    )
    out = capsys.readouterr()
    for way in ("forward", "backward"):
        assert f'"kind": "convolutions", "pass": "{way}"' in " ".join(out.out.split())
    assert list(tmp_path.rglob("*.xplane.pb"))
