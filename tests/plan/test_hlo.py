"""Reading compiled programs: a text written by hand, and one compiled for simulated devices."""

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from pit_jax.plan import hlo
from pit_jax.runtime.partitioning import MeshConfig, Partitioner

TEXT = """HloModule jit_step, is_scheduled=true

%add (x: f32[], y: f32[]) -> f32[] {
  ROOT %sum = f32[] add(%x, %y)
}

%all-reduce-scatter.1 (p: bf16[8,4]) -> bf16[2,4] {
  %all-reduce.9 = bf16[8,4]{1,0} all-reduce(%p), to_apply=%add
  ROOT %slice = bf16[2,4]{1,0} dynamic-slice(%all-reduce.9)
}

%inner_condition (s: (s32[], f32[4])) -> pred[] {
  %limit = s32[]{:T(128)} constant(5)
  ROOT %less = pred[] compare(%i, %limit), direction=LT
}

%inner (s: (s32[], f32[4])) -> (s32[], f32[4]) {
  %all-gather.2 = f32[4,16]{1,0:T(8,128)} all-gather(%piece), dimensions={1}
  ROOT %t = (s32[], f32[4]) tuple(%i, %x)
}

%outer_condition (s: (s32[], f32[4])) -> pred[] {
  %limit = s32[] constant(3)
  ROOT %less = pred[] compare(%i, %limit), direction=LT
}

%outer (s: (s32[], f32[4])) -> (s32[], f32[4]) {
  %while.1 = (s32[], f32[4]) while(%s), condition=%inner_condition, body=%inner
  %fusion.1 = bf16[2,4] fusion(%g), kind=kCustom, calls=%all-reduce-scatter.1
  ROOT %t = (s32[], f32[4]) tuple(%i, %x)
}

ENTRY %main (a: f32[4]) -> f32[4] {
  %start = (f32[2,4]{1,0}, f32[8,4]{1,0}) all-gather-start(%a), dimensions={0}
  %done = f32[8,4]{1,0} all-gather-done(%start)
  %while.2 = (s32[], f32[4]) while(%s), condition=%outer_condition, body=%outer
  ROOT %out = (f32[4], s32[2]) all-reduce(%x, %y), to_apply=%add
}
"""


def test_a_text_by_hand():
    program = hlo.Program(TEXT)
    found = [(c.kind, c.shapes, c.bytes, c.times, c.depth) for c in program.collectives()]
    assert found == [
        ("all-gather", ("f32[8,4]",), 128, 1, 0),
        ("all-gather", ("f32[4,16]",), 256, 15, 2),
        ("reduce-scatter", ("bf16[8,4]",), 64, 3, 1),
        ("all-reduce", ("f32[4]", "s32[2]"), 24, 1, 0),
    ]
    assert hlo.by_kind(program.collectives()) == {
        ("all-gather", False): (1, 128),
        ("all-gather", True): (15, 3840),
        ("reduce-scatter", True): (3, 192),
        ("all-reduce", False): (1, 24),
    }


def test_kernels_of_the_text_by_hand():
    """A gather, 3 times (a comparison, a fusion and 5 times a comparison and a gather), a sum."""
    assert hlo.Program(TEXT).launches() == 1 + 3 * (1 + 1 + 5 * (1 + 1)) + 1
    branches = """HloModule jit_step

%one (x: f32[]) -> f32[] {
  ROOT %y = f32[] add(%x, %x)
}

%two (x: f32[]) -> f32[] {
  %a = f32[] add(%x, %x)
  ROOT %b = f32[] multiply(%a, %x)
}

ENTRY %main (a: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %c = f32[] conditional(%p, %a, %a), branch_computations={%one, %two}
  %d = f32[] call(%c), to_apply=%two
  %s = ((f32[]), f32[]) async-start(%d), calls=%one
  ROOT %e = f32[] async-done(%s)
}
"""
    assert hlo.Program(branches).launches() == (1 + 2) + 2 + 1


def test_a_compiled_loop():
    """A scan of 7 steps, each of which sums over the mesh: seven all-reduces of the same size."""
    mesh = Partitioner(MeshConfig(data=1, model=4), jax.devices()[:4]).mesh
    split = NamedSharding(mesh, PartitionSpec(None, "model"))

    def step(x, _):
        y = jax.lax.with_sharding_constraint(x @ x.T, NamedSharding(mesh, PartitionSpec()))
        return jax.lax.with_sharding_constraint(x + y @ x, split), None

    x = jax.ShapeDtypeStruct((8, 16), jnp.float32, sharding=split)
    compiled = jax.jit(lambda x: jax.lax.scan(step, x, length=7)[0]).lower(x).compile()
    found = hlo.by_kind(hlo.Program(compiled.as_text()).collectives())
    assert found[("all-reduce", True)] == (7, 7 * 8 * 8 * 4)
