"""Programs whose work is known exactly, compiled for the CPU, and one that libtpu compiled."""

import pathlib

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from medkor_jax.plan.program import read_program

D = 32


def text_of(function, *shapes):
    arguments = [
        jax.ShapeDtypeStruct(shape, jnp.float32) if isinstance(shape, tuple) else shape
        for shape in shapes
    ]
    return jax.jit(function).lower(*arguments).compile().as_text()


def repeat(x, w, n):
    return jax.lax.scan(lambda x, _: (jnp.tanh(x @ w), None), x, None, length=n)[0]


def test_a_scan_counts_as_often_as_it_runs_and_one_within_another_so_often_again():
    once = 2 * 8 * D * D
    assert read_program(text_of(lambda x, w: repeat(x, w, 7), (8, D), (D, D))).flops == 7 * once

    def nested(x, w):
        return jax.lax.scan(lambda x, _: (repeat(x, w, 5) @ w, None), x, None, length=3)[0]

    text = text_of(nested, (8, D), (D, D))
    assert read_program(text).flops == 3 * (5 + 1) * once


def test_what_no_output_needs_is_not_counted():
    assert (
        read_program(text_of(lambda x, w: (x @ w, (x @ w.T) @ w)[0], (8, D), (D, D))).flops
        == 2 * 8 * D * D
    )


def test_a_conditional_counts_its_costliest_branch_or_as_often_as_it_is_taken():
    def drawn(x, w, flags):
        def body(x, flag):
            return jax.lax.cond(flag > 0, lambda x: jnp.tanh(x @ w @ w), lambda x: x, x), None

        return jax.lax.scan(body, x, flags)[0]

    text = text_of(drawn, (8, D), (D, D), (10,))
    assert read_program(text).flops == 10 * 2 * 2 * 8 * D * D
    assert read_program(text, costly_share=0.25).flops == pytest.approx(
        0.25 * 10 * 2 * 2 * 8 * D * D
    )


def test_a_loop_without_an_end_needs_to_be_told():
    def until(x, w):
        return jax.lax.while_loop(lambda x: jnp.sum(x) < 1e6, lambda x: x @ w, x)

    text = text_of(until, (8, D), (D, D))
    with pytest.raises(ValueError, match="does not say how often"):
        read_program(text)
    assert read_program(text, open_trips=4.0).flops == 4 * 2 * 8 * D * D


def test_a_gather_in_a_loop_counts_each_turn_and_a_sum_over_devices_twice_its_bytes():
    mesh = jax.make_mesh((4,), ("fsdp",), axis_types=(AxisType.Auto,))
    lay = lambda *axes: NamedSharding(mesh, PartitionSpec(*axes))

    def layers(x, weights):
        def body(x, w):
            w = jax.lax.with_sharding_constraint(w, lay())
            return jnp.tanh(x @ w), None

        x = jax.lax.scan(body, x, weights)[0]
        return jax.lax.with_sharding_constraint(jnp.sum(x, axis=0), lay())

    with jax.set_mesh(mesh):
        x = jax.ShapeDtypeStruct((16, D), jnp.float32, sharding=lay("fsdp"))
        weights = jax.ShapeDtypeStruct((6, D, D), jnp.float32, sharding=lay(None, "fsdp"))
        cost = read_program(text_of(layers, x, weights))
    assert cost.flops == 6 * 2 * 16 * D * D / 4
    assert cost.wire_bytes["all-gather"] == 6 * 4 * D * D * 3 / 4
    assert cost.wire_bytes["all-reduce"] == 2 * 4 * D * 3 / 4
    assert {one.n_group for one in cost.collectives.values()} == {4}


def test_main_memory_is_what_goes_in_and_comes_out():
    cost = read_program(text_of(lambda x: jnp.tanh(x) * 2 + 1, (1000, 1000)))
    assert cost.main_bytes == 2 * 4 * 1000 * 1000


def test_of_stacked_weights_a_turn_reads_its_slice():
    text = text_of(
        lambda x, ws: jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, ws)[0],
        (8, 256),
        (50, 256, 256),
    )
    assert 50 * 4 * 256 * 256 < read_program(text).main_bytes < 4 * 50 * 4 * 256 * 256


def test_an_asynchronous_gather_of_a_tpu_program_counts_once():
    """Six layers of x [2048, 1024] with matrices [1024, 4096] and back, each used twice, on v5e:2x2, as libtpu 0.0.52 wrote
    it: the second matrix's gather goes on beside the products and stands in four fused computations."""
    text = pathlib.Path(__file__).with_name("async_gather.hlo").read_text(encoding="utf-8")
    assert text.count("channel_id=5,") == 4 and "AsyncCollectiveStart" in text
    cost = read_program(text)
    assert cost.flops == 6 * 4 * 2 * 2048 * 1024 * 4096 / 4
    assert cost.wire_bytes == {"all-gather": 6 * 2 * 2 * 1024 * 4096 * 3 / 4}
    weights, rows = 6 * 2 * 2 * 1024 * 4096 / 4, 2 * 2048 * 1024 / 4
    assert weights + rows < cost.main_bytes < weights + 6 * rows


WINDOWED = """HloModule jit_step, is_scheduled=true, num_partitions=4

%done (p.1: (s32[], bf16[256,4096])) -> pred[] {
  %p.1 = (s32[], bf16[256,4096]) parameter(0)
  %at.1 = s32[] get-tuple-element(%p.1), index=0
  %end.1 = s32[] constant(9)
  ROOT %less.1 = pred[] compare(%at.1, %end.1), direction=LT
}

%window (p.2: (s32[], bf16[256,4096])) -> (s32[], bf16[256,4096]) {
  %p.2 = (s32[], bf16[256,4096]) parameter(0)
  %at.2 = s32[] get-tuple-element(%p.2), index=0
  %x.2 = bf16[256,4096] get-tuple-element(%p.2), index=1
  %all-gather.2 = bf16[1024,4096] all-gather(%x.2), channel_id=5, replica_groups=[1,4]<=[4], dimensions={0}
  %collective-permute.2 = bf16[256,4096] collective-permute(%x.2), channel_id=8, source_target_pairs={{0,1},{1,0}}
  ROOT %out.2 = (s32[], bf16[256,4096]) tuple(%at.2, %collective-permute.2)
}

%layer (p.3: (s32[], bf16[256,4096])) -> (s32[], bf16[256,4096]) {
  %p.3 = (s32[], bf16[256,4096]) parameter(0)
  %x.3 = bf16[256,4096] get-tuple-element(%p.3), index=1
  %all-gather.3 = bf16[1024,4096] all-gather(%x.3), channel_id=5, replica_groups=[1,4]<=[4], dimensions={0}
  ROOT %while.3 = (s32[], bf16[256,4096]) while(%p.3), condition=%done, body=%window, backend_config={"known_trip_count":{"n":"4"}}
}

ENTRY %main (p.4: (s32[], bf16[256,4096])) -> (s32[], bf16[256,4096]) {
  %p.4 = (s32[], bf16[256,4096]) parameter(0)
  ROOT %while.4 = (s32[], bf16[256,4096]) while(%p.4), condition=%done, body=%layer, backend_config={"known_trip_count":{"n":"6"}}
}
"""


def test_a_gather_that_goes_on_in_a_loop_within_its_layer_counts_once_a_layer():
    """As libtpu writes an each-layer step on v5e:4x4: begun and ended in a layer's body, beside the products of a
    windowed loop of four turns there; what that loop itself sends counts each turn."""
    part = 2 * 256 * 4096
    sent = read_program(WINDOWED).wire_bytes
    assert sent == {"all-gather": 6 * 3 * part, "collective-permute": 6 * 4 * part}
