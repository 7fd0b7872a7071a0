"""What is counted in the text of a compiled program: launches, bytes, branches, loops, collectives, cycles."""

import jax
import jax.numpy as jnp
import pytest

from scripts.hlo import count, parse, shape_bytes

PROGRAM = """HloModule jit_step, entry_computation_layout={(f32[4,8]{1,0})->f32[4,8]{1,0}}

%fused (param_0: f32[4,8], param_1: f32[100,8], param_2: s32[]) -> f32[4,8] {
  %param_0 = f32[4,8]{1,0} parameter(0)
  %param_1 = f32[100,8]{1,0} parameter(1)
  %param_2 = s32[] parameter(2)
  %zero = s32[] constant(0)
  %rows = f32[4,8]{1,0} dynamic-slice(%param_1, %param_2, %zero), dynamic_slice_sizes={4,8}
  ROOT %sum = f32[4,8]{1,0} add(%param_0, %rows)
}

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %s = f32[] add(%a, %b)
}

%body (state: (s32[], f32[4,8])) -> (s32[], f32[4,8]) {
  %state = (s32[], f32[4,8]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%state), index=0
  %x = f32[4,8]{1,0} get-tuple-element(%state), index=1
  %copied = f32[4,8]{1,0} copy(%x), backend_config={"window_config":{"estimated_cycles":"100"}}
  ROOT %next = (s32[], f32[4,8]{1,0}) tuple(%i, %copied)
}

%condition (state.1: (s32[], f32[4,8])) -> pred[] {
  %state.1 = (s32[], f32[4,8]{1,0}) parameter(0)
  ROOT %never = pred[] constant(false)
}

%small (p: f32[4,8]) -> f32[4,8] {
  ROOT %p = f32[4,8]{1,0} parameter(0)
}

%large (q: f32[4,8]) -> f32[4,8] {
  %q = f32[4,8]{1,0} parameter(0)
  %one = f32[4,8]{1,0} copy(%q)
  ROOT %two = f32[4,8]{1,0} copy(%one)
}

ENTRY %main (x.1: f32[4,8], data: f32[100,8], row: s32[], which: pred[]) -> f32[4,8] {
  %x.1 = f32[4,8]{1,0} parameter(0)
  %data = f32[100,8]{1,0} parameter(1)
  %row = s32[] parameter(2)
  %which = pred[] parameter(3)
  %fusion = f32[4,8]{1,0} fusion(%x.1, %data, %row), kind=kLoop, calls=%fused, metadata={op_name="jit(step)/(a)"}
  %start = (s32[], f32[4,8]{1,0}) tuple(%row, %fusion)
  %loop = (s32[], f32[4,8]{1,0}) while(%start), condition=%condition, body=%body, backend_config=KNOWN
  %endless = (s32[], f32[4,8]{1,0}) while(%loop), condition=%condition, body=%body
  %y = f32[4,8]{1,0} get-tuple-element(%endless), index=1
  %choice = f32[4,8]{1,0} conditional(%which, %y, %y), true_computation=%large, false_computation=%small
  %reduced = f32[4,8]{1,0} all-reduce-start(%choice), replica_groups={{0,1}}, to_apply=%add
  %done = f32[4,8]{1,0} all-reduce-done(%reduced)
  ROOT %called = f32[4,8]{1,0} custom-call(%done), custom_call_target="__cudnn$conv", backend_config=CYCLES
}
""".replace("KNOWN", '{"known_trip_count":{"n":"5"}}').replace("CYCLES", '{"estimated_cycles":"7"}')


def test_a_program_is_counted():
    counted = count(parse(PROGRAM))
    # five turns of a loop of known length, one of the other, and the dearer branch
    assert counted.launches == {"fusion": 1, "copy": 5 + 1 + 2, "all-reduce": 1, "custom-call __cudnn$conv": 1}
    assert counted.host_reads == 2  # of the second loop and of the conditional
    assert (counted.collectives, counted.collective_bytes) == (1, 128)
    # the fusion reads two arrays of 128 bytes, not all of the data, and an index; all else reads one and writes one
    assert counted.bytes == (128 + 128 + 4 + 128) + 8 * 256 + 256 + 256
    assert counted.cycles == 6 * 100 + 7


def test_the_model_of_a_launch():
    """The time of its bytes, and no less than that of a launch."""
    assert count(parse(PROGRAM), bandwidth=1.0, launch=1e-9).seconds == pytest.approx(388 + 8 * 256 + 512)
    assert count(parse(PROGRAM), bandwidth=1e30, launch=2.0).seconds == pytest.approx(2.0 * 11)


@pytest.mark.parametrize(
    ("shape", "size"),
    [
        ("f32[4,8]{1,0}", 128),
        ("bf16[3]{0:T(256)}", 6),
        ("pred[]", 1),
        ("(f32[2]{0}, s32[], u8[5]{0})", 8 + 4 + 5),
        ("token[]", 0),
        ("f8e4m3fn[16]", 16),
        ("f64[2,2]", 32),
    ],
)
def test_bytes_of_a_shape(shape, size):
    assert shape_bytes(shape) == size


def test_what_xla_prints_is_read():
    """A program of this machine: its loop is found, and the computations that it calls."""

    @jax.jit
    def looped(x):
        return jax.lax.fori_loop(0, 7, lambda i, x: jnp.sin(x @ x), x)

    module = parse(looped.lower(jnp.ones((32, 32))).compile().as_text())
    assert module.entry in module.computations
    counted = count(module)
    assert counted.launches.total() >= 14 and counted.bytes >= 7 * 2 * 32 * 32 * 4
