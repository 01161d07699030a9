"""Collectives are counted in the text of programs: loops, tuples, groups, copies, each against a count by hand."""

import pytest

from parity.plan.hlo import Collective, collectives, wire_bytes

CPU = """HloModule jit_step, is_scheduled=true

%add (a: f32[], b: f32[]) -> f32[] {
  ROOT %sum = f32[] add(%a, %b)
}

%inner (p: (s32[], f32[8])) -> (s32[], f32[8]) {
  %gather.1 = f32[4,8]{1,0} all-gather(%x), channel_id=1, replica_groups=mesh['axis_0'=2,'axis_1'=4] {'axis_1'}
  ROOT %t = (s32[], f32[8]) tuple(%i, %y)
}

%outer (p: (s32[], f32[8])) -> (s32[], f32[8]) {
  %sum.1 = (f32[10]{0}, /*index=1*/bf16[4,4]{1,0}) all-reduce(%x, %y), channel_id=2, replica_groups=[4,2]<=[8]
  %loop.2 = (s32[], f32[8]) while(%t), condition=%less, body=%inner, backend_config={"known_trip_count":{"n":"3"}}
  ROOT %t = (s32[], f32[8]) tuple(%i, %y)
}

%less (p: (s32[], f32[8])) -> pred[] {
  ROOT %lt = pred[] compare(%i, %n), direction=LT
}

ENTRY %main (x: f32[8]) -> f32[8] {
  %loop.1 = (s32[], f32[8]) while(%t), condition=%less, body=%outer, backend_config={"known_trip_count":{"n":"5"}}
  %start = (f32[2]{0}, f32[16]{0}) all-gather-start(%x), channel_id=3, replica_groups={{0,1,2,3,4,5,6,7}}
  %done = f32[16]{0} all-gather-done(%start)
  %scatter = f32[2]{0} reduce-scatter(%x), channel_id=4, replica_groups={{0,1},{2,3},{4,5},{6,7}}, to_apply=%add
  %alone = f32[99]{0} all-reduce(%x), channel_id=5, replica_groups={{0},{1},{2},{3},{4},{5},{6},{7}}, to_apply=%add
  ROOT %all = pred[3]{0} all-reduce(%x), channel_id=6, replica_groups={}, to_apply=%add
}
"""
TPU = """HloModule jit_step

%add (a: f32[], b: f32[]) -> f32[] {
  ROOT %sum = f32[] add(%a, %b)
}

%all-reduce-scatter.1 (input: f32[16]) -> f32[2] {
  %all-reduce.3 = f32[16]{0} all-reduce(%input), channel_id=7, replica_groups={{0,1,2,3,4,5,6,7}}, to_apply=%add
  ROOT %slice = f32[2]{0} dynamic-slice(%all-reduce.3, %i)
}

%overlapped (x: f32[2]) -> f32[16] {
  ROOT %gather = f32[16]{0:T(256)} all-gather(%x), channel_id=8, replica_groups={{0,1,2,3,4,5,6,7}}
}

%condition (p: (f32[2], s32[])) -> pred[] {
  %bound = s32[]{:T(128)} constant(8)
  %i = s32[]{:T(128)} get-tuple-element(%p), index=1
  ROOT %lt = pred[]{:T(512)} compare(%i, %bound), direction=LT
}

%body (p: (f32[2], s32[])) -> (f32[2], s32[]) {
  %step = s32[]{:T(128)} constant(2)
  %i = s32[]{:T(128)} get-tuple-element(%p), index=1
  %next = s32[]{:T(128)} add(%i, %step)
  %copied = s32[]{:T(128)} copy(%next)
  %fused = f32[2]{0} fusion(%x), kind=kCustom, calls=%all-reduce-scatter.1
  %again = f32[16]{0} fusion(%x), kind=kLoop, calls=%overlapped
  %sent = (f32[2]{0}, f32[2]{0}, u32[], u32[]) collective-permute-start(%x), source_target_pairs={{0,1},{1,0}}
  ROOT %t = (f32[2], s32[]) tuple(%x, %copied)
}

ENTRY %main (x: f32[2]) -> f32[2] {
  %first = f32[16]{0} fusion(%x), kind=kLoop, calls=%overlapped
  ROOT %loop = (f32[2], s32[]) while(%t), condition=%condition, body=%body
}
"""


def test_loops_tuples_and_groups_of_a_cpu_program() -> None:
    assert collectives(CPU, 8) == [
        Collective("all-gather", 4, 15, 15 * 4 * 8 * 4),
        Collective("all-gather", 8, 1, 16 * 4),
        Collective("all-reduce", 2, 5, 5 * (10 * 4 + 16 * 2)),
        Collective("all-reduce", 8, 1, 3),
        Collective("reduce-scatter", 2, 1, 16),
    ]


def test_fusions_and_counted_loops_of_a_tpu_program() -> None:
    assert collectives(TPU, 8) == [
        Collective("all-gather", 8, 1, 64),  # one collective, spread over two fusions
        Collective("collective-permute", 2, 4, 4 * 8),
        Collective("reduce-scatter", 8, 4, 4 * 64),
    ]


def test_a_loop_of_unknown_length_is_refused_and_not_counted_once() -> None:
    with pytest.raises(ValueError, match="body: the number of iterations of this loop is not known"):
        collectives(TPU.replace("direction=LT", "direction=NE"), 8)


def test_wire_bytes_of_the_ring() -> None:
    assert wire_bytes("all-gather", 4, 100) == wire_bytes("reduce-scatter", 4, 100) == 75
    assert wire_bytes("all-reduce", 4, 100) == 150
    assert wire_bytes("collective-permute", 4, 100) == 100
