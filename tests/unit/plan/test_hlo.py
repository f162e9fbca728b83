"""Reading compiled programs: against texts written by hand, and against arithmetic."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from vt_flax.paper.macs import products
from vt_flax.plan.hlo import Program
from vt_flax.plan.traffic import find_collectives, memory_traffic

# As TPUs have them: tiles, arrays on the chip, copies that go on meanwhile, loops.
TEXT = """HloModule step, is_scheduled=true, num_partitions=8

FileNames
1 "step.py"

%add (x: f32[], y: f32[]) -> f32[] {
  %x = f32[] parameter(0)
  %y = f32[] parameter(1)
  ROOT %sum = f32[] add(%x, %y)
}

%inner_body (p: (s32[], f32[16])) -> (s32[], f32[16]) {
  %p = (s32[], f32[16]{0:T(128)}) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %v = f32[16]{0:T(128)} get-tuple-element(%p), index=1
  %reduced = f32[16]{0:T(128)} all-reduce(%v), channel_id=3, replica_groups={{0,1},{2,3},{4,5},{6,7}}, to_apply=%add
  ROOT %t = (s32[], f32[16]{0:T(128)}) tuple(%i, %reduced)
}

%inner_condition (p: (s32[], f32[16])) -> pred[] {
  %p = (s32[], f32[16]{0:T(128)}) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %limit = s32[] constant(5)
  ROOT %less = pred[] compare(%i, %limit), direction=LT
}

%body (p: (s32[], f32[16])) -> (s32[], f32[16]) {
  %p = (s32[], f32[16]{0:T(128)}) parameter(0)
  ROOT %loop = (s32[], f32[16]{0:T(128)}) while(%p), condition=%inner_condition, body=%inner_body
}

%condition (p: (s32[], f32[16])) -> pred[] {
  %p = (s32[], f32[16]{0:T(128)}) parameter(0)
  ROOT %flag = pred[] custom-call(%p), custom_call_target="unknown"
}

%halves (a: f32[8,256], at: s32[]) -> f32[4,256] {
  %a = f32[8,256]{1,0:T(8,128)} parameter(0)
  %at = s32[] parameter(1)
  %zero = s32[] constant(0)
  %same = f32[8,256]{1,0:T(8,128)} bitcast(%a)
  %cut = f32[4,256]{1,0:T(8,128)} dynamic-slice(%same, %at, %zero), dynamic_slice_sizes={4,256}
  ROOT %twice = f32[4,256]{1,0:T(8,128)} add(%cut, %cut)
}

%update (a: f32[32,256], b: f32[8,256], at: s32[]) -> f32[32,256] {
  %a = f32[32,256]{1,0:T(8,128)} parameter(0)
  %b = f32[8,256]{1,0:T(8,128)} parameter(1)
  %at = s32[] parameter(2)
  %zero = s32[] constant(0)
  ROOT %new = f32[32,256]{1,0:T(8,128)} dynamic-update-slice(%a, %b, %at, %zero)
}

%all-reduce-scatter.1 (a: bf16[64,8]) -> bf16[8,8] {
  %a = bf16[64,8]{1,0} parameter(0)
  %whole = bf16[64,8]{1,0} all-reduce(%a), channel_id=9, replica_groups=[1,8]<=[8], to_apply=%add
  %zero = s32[] constant(0)
  ROOT %part = bf16[8,8]{1,0} dynamic-slice(%whole, %zero, %zero), dynamic_slice_sizes={8,8}
}

%chain_start (a: bf16[2,8]) -> bf16[8,8] {
  %a = bf16[2,8]{1,0:T(8,128)S(1)} parameter(0)
  ROOT %gather = bf16[8,8]{1,0:T(8,128)S(1)} all-gather(%a), channel_id=4, replica_groups=mesh['x'=2,'y'=4] {'y'}, dimensions={0}, frontend_attributes={chain_id="0"}
}

%chain_done (a: bf16[2,8]) -> bf16[8,8] {
  %a = bf16[2,8]{1,0:T(8,128)S(1)} parameter(0)
  ROOT %gather = bf16[8,8]{1,0:T(8,128)S(1)} all-gather(%a), channel_id=4, replica_groups=mesh['x'=2,'y'=4] {'y'}, dimensions={0}, frontend_attributes={chain_id="0"}
}

ENTRY %main (a: f32[8,256], b: f32[32,256], c: bf16[3,16]) -> f32[32,256] {
  %a = f32[8,256]{1,0:T(8,128)} parameter(0)
  %b = f32[32,256]{1,0:T(8,128)} parameter(1)
  %c = bf16[3,16]{1,0:T(8,128)(2,1)} parameter(2)
  %zero = s32[] constant(0)
  %near = f32[4,256]{1,0:T(8,128)S(1)} fusion(%a, %zero), kind=kLoop, calls=%halves
  %written = f32[32,256]{1,0:T(8,128)} fusion(%b, %a, %zero), kind=kLoop, calls=%update
  %padded = bf16[3,16]{1,0:T(8,128)(2,1)} negate(%c)
  %start = (f32[8,256]{1,0:T(8,128)S(1)}, f32[8,256]{1,0:T(8,128)}, u32[]{:S(2)}) copy-start(%a)
  %done = f32[8,256]{1,0:T(8,128)S(1)} copy-done(%start)
  %cut_start = ((f32[32,256]{1,0:T(8,128)}), f32[8,256]{1,0:T(8,128)S(1)}, s32[]{:S(2)}) slice-start(%b), slice={[0:8], [0:256]}
  %cut_done = f32[8,256]{1,0:T(8,128)S(1)} slice-done(%cut_start)
  %room = f32[64,256]{1,0:T(8,128)} custom-call(), custom_call_target="AllocateBuffer"
  %kernel = f32[8,256]{1,0:T(8,128)} custom-call(%done), custom_call_target="tpu_custom_call"
  %vector = f32[16]{0:T(128)S(1)} iota(), iota_dimension=0
  %state = (s32[]{:T(128)S(6)}, f32[16]{0:T(128)S(1)}) tuple(%zero, %vector)
  %outer = (s32[], f32[16]{0:T(128)}) while(%state), condition=%condition, body=%body, backend_config={"known_trip_count":{"n":"7"}}
  %endless = (s32[], f32[16]{0:T(128)}) while(%state), condition=%condition, body=%inner_body
  %moved = f32[16]{0:T(128)S(1)} collective-permute(%vector), channel_id=5, source_target_pairs={{0,1},{1,0}}
  %pair = (f32[16]{0:T(128)S(1)}, f32[8]{0:T(128)S(1)}) all-reduce-start(%vector, %vector), channel_id=6, replica_groups={}, to_apply=%add
  %pair_done = (f32[16]{0:T(128)S(1)}, f32[8]{0:T(128)S(1)}) all-reduce-done(%pair)
  %small = bf16[64,8]{1,0:S(1)} iota(), iota_dimension=0
  %scattered = bf16[8,8]{1,0:S(1)} fusion(%small), kind=kCustom, calls=%all-reduce-scatter.1
  %quarter = bf16[2,8]{1,0:T(8,128)S(1)} iota(), iota_dimension=0
  %first = bf16[8,8]{1,0:T(8,128)S(1)} fusion(%quarter), kind=kCustom, calls=%chain_start
  %second = bf16[8,8]{1,0:T(8,128)S(1)} fusion(%quarter), kind=kCustom, calls=%chain_done
  ROOT %out = f32[32,256]{1,0:T(8,128)} bitcast(%written)
}
"""  # noqa: E501, as XLA writes


def test_loops():
    program = Program(TEXT)
    assert program.entry == "main"
    # Seven times five, and once in a loop of unknown length.
    assert program.runs == {"main": 1, "body": 7, "inner_body": 7 * 5 + 1}
    assert program.unknown == 1


def test_arrays():
    main = Program(TEXT).computations["main"]
    (array,) = main["c"].arrays
    # Tiles of 8 x 128: two bytes each.
    assert (array.bytes, array.padded, array.in_hbm) == (3 * 16 * 2, 8 * 128 * 2, True)
    (array,) = main["near"].arrays
    assert (array.bytes, array.padded, array.in_hbm) == (4096, 8192, False)
    assert [array.bytes for array in main["state"].arrays] == [4, 64]
    assert [array.in_hbm for array in main["start"].arrays] == [False, True, False]
    assert len(main["cut_start"].arrays) == 3


def test_traffic():
    kept = 4 * 8 * 256
    expected = {
        "near": kept,  # half of `a` in tiles of 8 rows, and nothing written
        "zero": 2 * 4,  # an operand of two fusions
        "written": 2 * kept,  # `a` read, eight rows of 32 written
        "padded": 2 * 2 * 8 * 128,
        "start": kept,  # read, and written on the chip
        "cut_start": kept,
        "kernel": kept,  # its operand lies on the chip
        "reduced": 36 * 2 * 4 * 128,
    }
    assert memory_traffic(Program(TEXT)) == sum(expected.values())


def test_collectives():
    assert find_collectives(Program(TEXT), range(8)) == {
        "all-gather": row(1, 4 * 2 * 8 * 2, 3 * 32),
        # 36 times two devices exchange halves twice; eight send 7 of 8 parts twice.
        "all-reduce": row(37, 36 * 64 + 128, 36 * 64 + 2 * 128 * 7 / 8),
        "collective-permute": row(1, 64, 64),
        "reduce-scatter": row(1, 64 * 8 * 2, 7 * 128),
    }


def row(count, size, sent):
    return {"count": count, "bytes": size, "sent": sent}


def bytes_sent(groups, chips, kind="all-reduce"):
    """Returns the bytes that a chip sends for a kilobyte on each device."""
    text = f"""ENTRY %main (a: f32[256]) -> f32[256] {{
  %a = f32[256]{{0}} parameter(0)
  ROOT %b = f32[256]{{0}} {kind}(%a), channel_id=1, {groups}, x=1
}}"""
    return find_collectives(Program(text), chips)[kind]["sent"]


CHIPS_OF_TWO = [0, 0, 1, 1, 2, 2, 3, 3]
WRITTEN = [
    # As written; kilobytes that a chip with one device sends, and one with two, which
    # is in as many groups as its devices are.
    ("{}", 2 * 7 / 8, 2 * 3 / 4),
    ("{{0,1,2,3},{4,5,6,7}}", 2 * 3 / 4, 2 * 1 / 2),
    ("[4,2]<=[8]", 2 * 1 / 2, 0),
    ("[2,4]<=[4,2]T(1,0)", 2 * 3 / 4, 2 * 2 * 3 / 4),
    ("mesh['a'=4,'b'=2] {'b'}", 2 * 1 / 2, 0),
    ("mesh['a'=4,'b'=2] {'a'}", 2 * 3 / 4, 2 * 2 * 3 / 4),
    ("mesh['a'=8] {'a':(2)4}", 2 * 3 / 4, 2 * 1 / 2),
    ("mesh['a'=8] {'a':(1)4}", 2 * 3 / 4, 2 * 2 * 3 / 4),
]


@pytest.mark.parametrize("written,alone,pairs", WRITTEN)
def test_groups(written, alone, pairs):
    """As in rings of chips, in which each sends all but one of its parts."""
    groups = f"replica_groups={written}"
    assert bytes_sent(groups, range(8)) == alone * 1024
    assert bytes_sent(groups, CHIPS_OF_TWO) == pairs * 1024


@pytest.mark.parametrize(
    "kind,groups,alone,pairs",
    [
        ("all-to-all", "replica_groups={}", 7 / 8, 2 * 6 / 8),
        # The whole is eight times as large as what each device has.
        ("all-gather", "replica_groups={}", 7, 6),
        ("reduce-scatter", "replica_groups={}", 7 / 8, 3 / 4),
        # One pair crosses from a chip to another, as in a ring; and all do.
        ("collective-permute", "source_target_pairs={{0,1},{1,2},{2,3}}", 1, 1),
        ("collective-permute", "source_target_pairs={{0,2},{1,3}}", 1, 2),
    ],
)
def test_bytes_sent(kind, groups, alone, pairs):
    assert bytes_sent(groups, range(8), kind) == alone * 1024
    assert bytes_sent(groups, CHIPS_OF_TWO, kind) == pairs * 1024


def test_sparse_cores():
    """A tpu7x's all-reduces run beside its TensorCores."""
    program = Program(
        """
%reduce (p: bf16[8,128]) -> bf16[8,128] {
  %p = bf16[8,128]{1,0:T(8,128)(2,1)} parameter(0)
  ROOT %r = bf16[8,128]{1,0:T(8,128)(2,1)} all-reduce(%p), replica_groups=mesh['a'=8] {'a'}, to_apply=%add
}, execution_thread="sparsecore"

ENTRY %main (a: bf16[8,128]) -> bf16[8,128] {
  %a = bf16[8,128]{1,0:T(8,128)(2,1)} parameter(0)
  %start = ((), (), (s32[1]{0:T(128)S(2)})) call-start(), async_execution_thread="sparsecore", to_apply=%reduce
  %update = ((bf16[8,128]{1,0:T(8,128)(2,1)}), bf16[8,128]{1,0:T(8,128)(2,1)}) call-update(%start, %a)
  ROOT %done = bf16[8,128]{1,0:T(8,128)(2,1)} call-done(%update)
}
"""  # noqa: E501, as XLA writes
    )
    found = find_collectives(program, CHIPS_OF_TWO)
    assert found == {"all-reduce": row(1, 2048, 2 * 2048 * 3 / 4)}
    # Read and written once.
    assert memory_traffic(program) == 2 * 2048


@pytest.fixture
def mesh():
    return jax.make_mesh((8,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))


def compiled(mesh, function, *shapes):
    """Compiles a function of float32 arrays that are spread along their first axis."""
    spread = NamedSharding(mesh, PartitionSpec("x"))
    arguments = [jax.ShapeDtypeStruct(x, jnp.float32, sharding=spread) for x in shapes]
    return jax.jit(function).lower(*arguments).compile()


def test_collectives_of_a_real_program(mesh):
    """A mean in a loop."""

    def looped(x):
        def one(carry, _):
            return carry - carry.mean(0), None

        return jax.lax.scan(one, x, None, length=11)[0]

    program = Program(compiled(mesh, looped, (16, 100)).as_text())
    found = find_collectives(program, range(8))
    assert found == {"all-reduce": row(11, 11 * 400, 11 * 2 * 400 * 7 / 8)}
    assert program.unknown == 0


def test_traffic_of_a_real_program(mesh):
    """It is what XLA counts, where no loop runs more than once."""

    def gradient(x, w):
        def loss(w):
            y = jnp.tanh(x @ w)
            return jnp.sum(jnp.square(y - y.mean(0))) + jnp.sum(x[:, :8])

        return jax.grad(loss)(w)

    found = compiled(mesh, gradient, (1024, 128), (128, 128))
    counted = found.cost_analysis()["bytes accessed"]
    assert memory_traffic(Program(found.as_text())) == pytest.approx(counted, rel=0.02)

    def looped(x):
        def one(i, x):
            return x.at[i].set(jnp.cos(x[i]))

        return jax.lax.fori_loop(0, 500, one, x)

    text = jax.jit(looped).lower(jnp.zeros((500, 1000))).compile().as_text()
    # Each row is read and written once, the whole at most copied before.
    assert 2 * 2e6 <= memory_traffic(Program(text)) <= 2 * 2e6 + 3 * 2e6


@pytest.mark.parametrize("stride,size,window", [(1, 9, 3), (2, 8, 7)])
def test_products_without_padding(stride, size, window):
    """A convolution and both its gradients, by hand and as XLA counts them."""
    pad = window // 2

    def gradients(x, w):
        def convolve(x, w):
            layout = ("NHWC", "HWIO", "NHWC")
            return jax.lax.conv_general_dilated(
                x, w, (stride, stride), [(pad, pad)] * 2, dimension_numbers=layout
            )

        y, pull = jax.vjp(convolve, x, w)
        return y, pull(y)

    x, w = jnp.ones((2, size, size, 5)), jnp.ones((window, window, 5, 4))
    along = sum(
        0 <= start + k - pad < size
        for start in range(0, size, stride)
        for k in range(window)
    )
    traced = jax.make_jaxpr(gradients)(x, w).jaxpr
    found = sum(macs for _, macs in products(traced, padding=False))
    assert found == 3 * 2 * 5 * 4 * along**2
    cost = jax.jit(gradients).lower(x, w).cost_analysis()
    assert cost["flops"] == pytest.approx(2 * found, rel=0.02)


def test_the_lesser_branch_counts():
    def branched(x, flag):
        return jax.lax.cond(flag, lambda x: x @ x @ x, lambda x: x @ x, x)

    traced = jax.make_jaxpr(branched)(np.ones((4, 4), np.float32), True).jaxpr
    assert sum(macs for _, macs in products(traced)) == 4**3
