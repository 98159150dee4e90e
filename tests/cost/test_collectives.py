"""Exchanges read from a compiled program: a written one with every notation, and real ones whose counts are known."""

import types

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec

from vidlang.core.sharding import make_mesh
from vidlang.cost.collectives import Collective, by_kind, in_words, read, sent

ALONE = "ENTRY %main (x: f32[8]) -> f32[8] {\n  ROOT %x = f32[8]{0} parameter(0)\n}\n"
PROGRAM = """HloModule step
%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %s = f32[] add(%a, %b)
}
%counts (p: (s32[], f32[4])) -> pred[] {
  %p = (s32[], f32[4]) parameter(0)
  %limit = s32[] constant(9)
  %i = s32[] get-tuple-element(%p), index=0
  ROOT %less = pred[] compare(%i, %limit), direction=LT
}
%round (p: (s32[], f32[4])) -> (s32[], f32[4]) {
  %p = (s32[], f32[4]) parameter(0)
  %two = s32[] constant(2)
  %i = s32[] get-tuple-element(%p), index=0
  %x = f32[4]{0} get-tuple-element(%p), index=1
  %copied = s32[] copy(%i)
  %next = s32[] add(%copied, %two)
  %y = f32[4]{0} collective-permute(%x), channel_id=1, source_target_pairs={{0,1},{1,0}}
  ROOT %t = (s32[], f32[4]) tuple(%next, %y)
}
%begun (p: bf16[2,3]) -> bf16[4,3] {
  %p = bf16[2,3]{1,0} parameter(0)
  ROOT %g = bf16[4,3]{1,0:T(8,128)(2,1)} all-gather(%p), channel_id=2, replica_groups={{0,1},{2,3}}, dimensions={0}
}
%async_collective_fusion.1 (p: bf16[2,3]) -> bf16[4,3] {
  %p = bf16[2,3]{1,0} parameter(0)
  ROOT %g2 = bf16[4,3]{1,0} all-gather(%p), channel_id=2, replica_groups={{0,1},{2,3}}, dimensions={0}
}
%ended (p: bf16[2,3]) -> bf16[4,3] {
  %p = bf16[2,3]{1,0} parameter(0)
  ROOT %g3 = bf16[4,3]{1,0} all-gather(%p), channel_id=2, replica_groups={{0,1},{2,3}}, dimensions={0}
}
%all-reduce-scatter.1 (p: f32[8]) -> f32[2] {
  %p = f32[8]{0} parameter(0)
  %r = f32[8]{0} all-reduce(%p), channel_id=3, replica_groups=[2,4]<=[8], to_apply=%add
  ROOT %d = f32[2]{0} dynamic-slice(%r), dynamic_slice_sizes={2}
}
%cheap (p: f32[8]) -> f32[8] {
  ROOT %p = f32[8]{0} parameter(0)
}
%dear (p: f32[8]) -> f32[8] {
  %p = f32[8]{0} parameter(0)
  ROOT %e = f32[8]{0} all-to-all(%p), channel_id=4, replica_groups={{0,1,2,3,4,5,6,7}}, dimensions={0}
}
ENTRY %main (x: f32[8], y: bf16[2,3], z: f32[4]) -> f32[8] {
  %x = f32[8]{0} parameter(0)
  %y = bf16[2,3]{1,0} parameter(1)
  %z = f32[4]{0} parameter(2)
  %zero = s32[] constant(0)
  %t = (s32[], f32[4]) tuple(%zero, %z)
  %loop = (s32[], f32[4]) while(%t), condition=%counts, body=%round
  %async-collective-start = bf16[4,3]{1,0} fusion(%y), kind=kCustom, calls=%begun
  %fusion.1 = bf16[4,3]{1,0} fusion(%y), kind=kOutput, calls=%async_collective_fusion.1
  %async-collective-done = bf16[4,3]{1,0} fusion(%y), kind=kCustom, calls=%ended
  %scattered = f32[2]{0} fusion(%x), kind=kCustom, calls=%all-reduce-scatter.1
  %choice = f32[8]{0} conditional(%zero, %x, %x), branch_computations={%cheap, %dear}
  %both = (f32[8]{0}, f32[4]{0}) all-reduce(%x, %z), channel_id=5, replica_groups=mesh['a'=2,'b'=4], device_ids=([2,4]T(1,0)) {'b'}, to_apply=%add
  %started = (f32[8], f32[8]) all-reduce-start(%x), channel_id=6, replica_groups=mesh['a'=2,'b'=4] {'a','b'}, to_apply=%add
  %done = f32[8]{0} all-reduce-done(%started)
  %after = token[] after-all()
  %send = (f32[8], u32[], token[]) send(%x, %after), channel_id=7, is_host_transfer=true, frontend_attributes={_xla_megascale_target="{1,2}x{0:3}",_xla_megascale_transfer_type="ALL_REDUCE"}
  ROOT %out = f32[8]{0} add(%done, %choice)
}
"""  # noqa: E501


def test_a_written_program_is_read_to_the_byte():
    assert set(read(PROGRAM)) == {
        Collective("collective-permute", 0, 16, times=5),  # 0, 2, 4, 6, 8 of 9
        Collective("all-gather", 2, 24),  # named three times, once
        Collective("reduce-scatter", 4, 32),
        Collective("all-to-all", 8, 32),  # the dearer branch
        Collective("all-reduce", 4, 48),
        Collective("all-reduce", 8, 32),
        Collective("all-reduce", 2, 32, between_slices=True),
    }


@pytest.mark.parametrize(
    ("kind", "bytes_sent"),
    [("all-reduce", 150), ("all-gather", 75), ("reduce-scatter", 75), ("all-to-all", 75), ("collective-permute", 100)],
)
def test_a_ring_of_four_sends_all_but_its_own_part(kind, bytes_sent):
    assert sent(kind, 100, 4) == bytes_sent
    assert kind == "collective-permute" or sent(kind, 100, 1) == 0


def test_a_loop_of_a_real_program_counts_as_often_as_it_runs():
    mesh = make_mesh({"data": 2, "tensor": 4})

    def local(x):
        def step(x, _):
            return jax.lax.psum(x, "tensor") / 4, None

        return jax.lax.all_gather(jax.lax.scan(step, x, None, length=7)[0], "data", tiled=True)

    spec = PartitionSpec("data", "tensor")
    step = jax.shard_map(local, mesh=mesh, in_specs=spec, out_specs=PartitionSpec(None, "tensor"), check_vma=False)
    found = read(jax.jit(step).lower(jnp.zeros((8, 16))).compile().as_text())
    assert [(one.kind, one.groups_of, one.bytes, one.times) for one in found] == [
        ("all-reduce", 4, 4 * 4 * 4, 7),
        ("all-gather", 2, 8 * 4 * 4, 1),
    ]
    assert [total.sent for total in by_kind(found)] == [7 * 2 * 64 * 3 / 4, 64]


def test_what_is_no_program_and_what_cannot_be_counted_is_refused():
    with pytest.raises(ValueError, match="it has no ENTRY"):
        read("nothing")
    unknown = PROGRAM.replace("%next = s32[] add(%copied, %two)", "%next = s32[] multiply(%copied, %two)")
    with pytest.raises(ValueError, match="does not say how often"):
        read(unknown)


def test_a_program_in_words_has_the_sum_and_each_kind():
    words = in_words(types.SimpleNamespace(as_text=lambda: PROGRAM))
    found = read(PROGRAM)
    assert words.startswith(f"each device sends {sum(one.sent for one in found) / 1e6:,.1f} MB in a step: ")
    assert all(one.kind in words for one in found)
    assert in_words(types.SimpleNamespace(as_text=lambda: ALONE)) == "each device sends 0.0 MB in a step"
