"""The count of memory traffic in benchmarks/scale.py, by hand, on a small program's text."""

from __future__ import annotations

from scale import Traffic

# Two layers of a weight [2, 8, 4] and a cache [2, 16, 4] in bfloat16: each turn of the inner loop
# slices a weight (64 bytes) into fast memory, copies a column (8 bytes) into the cache in place and
# reads the layer's cache (128 bytes).
TEXT = """
HloModule jit_advance

%sliced (p0: bf16[2,8,4], p1: s32[]) -> bf16[8,4] {
  %p0 = bf16[2,8,4]{2,1,0} parameter(0)
  %p1 = s32[] parameter(1)
  %zero = s32[] constant(0)
  %one = bf16[1,8,4]{2,1,0} dynamic-slice(%p0, %p1, %zero, %zero), dynamic_slice_sizes={1,8,4}
  ROOT %b = bf16[8,4]{1,0:T(8,128)S(3)} bitcast(%one)
}

%written (p0: bf16[2,16,4], p1: bf16[1,1,4], p2: s32[]) -> bf16[2,16,4] {
  %p0 = bf16[2,16,4]{2,1,0} parameter(0)
  %p1 = bf16[1,1,4]{2,1,0:S(3)} parameter(1)
  %p2 = s32[] parameter(2)
  ROOT %u = bf16[2,16,4]{2,1,0} dynamic-update-slice(%p0, %p1, %p2, %p2, %p2)
}

%read (p0: bf16[2,16,4], p1: s32[]) -> f32[16] {
  %p0 = bf16[2,16,4]{2,1,0} parameter(0)
  %p1 = s32[] parameter(1)
  %own = bf16[1,16,4]{2,1,0} dynamic-slice(%p0, %p1, %p1, %p1), dynamic_slice_sizes={1,16,4}
  ROOT %sum = f32[16]{0:S(3)} reduce(%own, %p1), dimensions={0,2}
}

%layer (t: (s32[], bf16[2,8,4], bf16[2,16,4])) -> (s32[], bf16[2,8,4], bf16[2,16,4]) {
  %t = (s32[], bf16[2,8,4], bf16[2,16,4]) parameter(0)
  %i = s32[]{:S(6)} get-tuple-element(%t), index=0
  %w = bf16[2,8,4]{2,1,0} get-tuple-element(%t), index=1
  %c = bf16[2,16,4]{2,1,0} get-tuple-element(%t), index=2
  %f0 = bf16[8,4]{1,0:T(8,128)S(3)} fusion(%w, %i), kind=kLoop, calls=%sliced
  %new = bf16[1,1,4]{2,1,0:S(3)} custom-call(%f0)
  %f1 = bf16[2,16,4]{2,1,0} fusion(%c, %new, %i), kind=kLoop, calls=%written
  %f2 = f32[16]{0:S(3)} fusion(%f1, %i), kind=kLoop, calls=%read
  ROOT %out = (s32[], bf16[2,8,4], bf16[2,16,4]) tuple(%i, %w, %f1)
}

%more_layers (t: (s32[], bf16[2,8,4], bf16[2,16,4])) -> pred[] {
  %t = (s32[], bf16[2,8,4], bf16[2,16,4]) parameter(0)
  %i = s32[]{:S(6)} get-tuple-element(%t), index=0
  %n = s32[]{:S(6)} constant(2)
  ROOT %less = pred[]{:S(6)} compare(%i, %n), direction=LT
}

%token (t: (s32[], bf16[2,8,4], bf16[2,16,4])) -> (s32[], bf16[2,8,4], bf16[2,16,4]) {
  %t = (s32[], bf16[2,8,4], bf16[2,16,4]) parameter(0)
  %head = f32[25]{0} broadcast(%t)
  ROOT %w = (s32[], bf16[2,8,4], bf16[2,16,4]) while(%t), condition=%more_layers, body=%layer
}

%more_tokens (t: (s32[], bf16[2,8,4], bf16[2,16,4])) -> pred[] {
  %t = (s32[], bf16[2,8,4], bf16[2,16,4]) parameter(0)
  %i = s32[]{:S(6)} get-tuple-element(%t), index=0
  %n = s32[]{:S(6)} constant(512)
  ROOT %less = pred[]{:S(6)} compare(%i, %n), direction=LT
}

ENTRY %main (a: (s32[], bf16[2,8,4], bf16[2,16,4])) -> (s32[], bf16[2,8,4], bf16[2,16,4]) {
  %a = (s32[], bf16[2,8,4], bf16[2,16,4]) parameter(0)
  ROOT %w = (s32[], bf16[2,8,4], bf16[2,16,4]) while(%a), condition=%more_tokens, body=%token
}
"""


def test_a_token_moves_slices_and_columns_and_not_whole_arrays():
    layer = 64 + (8 + 8) + 128
    head = 100 + 4 + 2 * 8 * 4 * 2 + 2 * 16 * 4 * 2  # what it writes, and the tuple that it reads
    assert Traffic(TEXT).of_a_turn() == head + 2 * layer


def test_what_is_in_fast_memory_counts_nothing():
    kept = TEXT.replace("%w = bf16[2,8,4]{2,1,0} get", "%w = bf16[2,8,4]{2,1,0:S(3)} get")
    assert Traffic(TEXT).of_a_turn() - Traffic(kept).of_a_turn() == 2 * 64
