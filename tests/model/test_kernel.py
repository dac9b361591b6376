"""Every attention gives the numbers of products under the whole mask; what it costs is what it says."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medkor_jax.model import attention, blocked, kernel, splash
from medkor_jax.model.attention import Seen
from medkor_jax.model.config import preset
from medkor_jax.model.forward import Inputs, forward
from medkor_jax.model.params import Params
from medkor_jax.parallel.mesh import MeshShape, make_mesh, shard_tree
from medkor_jax.plan.program import read_program

HEADS, KEY_HEADS = 4, 2


def make_inputs(t, head=16, rows=2, dtype=jnp.float32, branches=False):
    """Packed rows: documents of many lengths, padding at the end of all but the first row."""
    rng = np.random.default_rng(0)
    normal = lambda n: jnp.asarray(rng.standard_normal((rows, t, n, head)), dtype)  # noqa: E731
    positions, segments = np.zeros((2, rows, t), np.int32)
    for b in range(rows):
        start, segment = 0, 1
        while start < t - 9 * b:
            stop = min(t - 9 * b, start + int(rng.integers(1, t)))
            positions[b, start:stop], segments[b, start:stop] = np.arange(stop - start), segment
            start, segment = stop, segment + 1
    seen = Seen(*map(jnp.asarray, (positions, segments)))
    if branches:  # one document a row, whose last third continues it at the first third: further away than its positions say
        at, third = np.arange(t), t // 3
        positions = np.broadcast_to(np.where(at < 2 * third, at, at - third), (rows, t))
        of = np.broadcast_to(np.where(at < third, 0, np.where(at < 2 * third, 1, 2)), (rows, t))
        seen = Seen(*(jnp.asarray(x, jnp.int32) for x in (positions, np.ones((rows, t)), of)))
    return normal(HEADS) * head**-0.5, normal(KEY_HEADS), normal(KEY_HEADS), seen


def value_and_gradient(attend, q, k, v, seen):
    """Of what real tokens see alone: padding sees padding, and how much of it is nobody's business."""
    real = (seen.segments > 0)[..., None]

    def loss(q, k, v):
        out = attend(q, k, v)
        return jnp.sum(jnp.sin(out.astype(jnp.float32)) * real), jnp.where(real, out, 0)

    (_, out), gradient = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True))(q, k, v)
    return out, *gradient


def assert_equals_the_whole_mask(attend, q, k, v, seen, window, tolerance=2e-6):
    masked = lambda q, k, v: attention.attend(q, k, v, attention.visible(seen, seen, window))  # noqa: E731
    found, expected = (value_and_gradient(f, q, k, v, seen) for f in (attend, masked))
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == other.dtype
        one, other = np.asarray(one, np.float32), np.asarray(other, np.float32)
        np.testing.assert_allclose(one, other, atol=tolerance * np.abs(other).max())


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(blocked, "BLOCK", 8)


@pytest.mark.parametrize("window", [None, 1, 8, 9, 21, 200])
@pytest.mark.parametrize("t", [64, 61, 7])
def test_blocks_equal_the_whole_mask(small_blocks, t, window):
    q, k, v, seen = make_inputs(t)
    assert_equals_the_whole_mask(lambda q, k, v: blocked.attend_blocks(q, k, v, seen, window), q, k, v, seen, window)


def test_blocks_of_branches_see_their_trunk_however_far_it_is(small_blocks):
    q, k, v, seen = make_inputs(63, branches=True)
    assert_equals_the_whole_mask(lambda q, k, v: blocked.attend_blocks(q, k, v, seen, 12), q, k, v, seen, 12)


@pytest.mark.parametrize("is_local", [True, False])
def test_the_kind_of_a_layer_is_data(small_blocks, is_local):
    q, k, v, seen = make_inputs(64)

    def attend(q, k, v):
        return kernel.attend_by_kind("blocked", q, k, v, seen, jnp.asarray(is_local), 10)

    assert_equals_the_whole_mask(attend, q, k, v, seen, 10 if is_local else None)


def test_a_local_layer_costs_its_window_and_no_mask_is_whole(small_blocks):
    """FLOPs of the compiled program, by hand: 2 products forward, and 5 backward, of which one makes the scores again."""
    t, window, (q, k, v, seen) = 256, 20, make_inputs(256)
    by_score = 2 * 2 * HEADS * 16  # a product, 2 rows
    for span in (window, None):
        attend = functools.partial(blocked.attend_blocks, seen=seen, window=span)
        forward = jax.jit(attend).lower(q, k, v).compile()
        both = jax.jit(jax.grad(lambda *x: attend(*x).sum(), argnums=(0, 1, 2))).lower(q, k, v).compile()
        scores = blocked.n_scores(t, span)
        assert read_program(forward.as_text()).flops == 2 * scores * by_score
        assert read_program(both.as_text()).flops <= 7 * scores * by_score
        assert both.memory_analysis().temp_size_in_bytes < 0.5 * 2 * HEADS * t * t * 4
    assert blocked.n_scores(t, window) == t * 32 and blocked.n_scores(t, None) == t * t * 5 // 8


@pytest.mark.parametrize(("shape", "n"), [(None, 1), (MeshShape(2, 1, 2), 4), (MeshShape(1, 4, 1), 4)], ids=str)
@pytest.mark.parametrize("window", [None, 100])
def test_the_fused_kernel_equals_the_whole_mask(monkeypatch, shape, n, window):
    """Interpreted, alone and under a mesh of rows and heads."""
    monkeypatch.setattr(splash, "_BLOCKS", (128,))
    q, k, v, seen = make_inputs(384, head=128, rows=4 if shape == MeshShape(1, 4, 1) else 2)
    attend = lambda q, k, v: splash.attend_splash(q, k, v, seen, window, interpret=True)  # noqa: E731
    if shape is None:
        return assert_equals_the_whole_mask(attend, q, k, v, seen, window)
    with jax.set_mesh(make_mesh(shape, jax.devices()[:n])):
        assert_equals_the_whole_mask(attend, q, k, v, seen, window)


def test_the_kernels_products_are_found_by_the_names_they_have_in_a_program():
    """As in the jaxpr: forward 2, and backward forward again, 3 and 4."""
    q, k, v, seen = make_inputs(256, head=128)
    attend = functools.partial(splash.attend_splash, seen=seen, window=None, interpret=True)
    found = str(jax.make_jaxpr(lambda q, k, v, ct: jax.vjp(attend, q, k, v)[1](ct))(q, k, v, jnp.zeros((2, 256, HEADS * 128))))
    names = set(re.findall(r"splash_\w+", found))
    assert sorted(splash.n_products(name) for name in names if splash.n_products(name)) == [2, 3, 4]
    assert splash.n_products("fusion.12") is None


@pytest.fixture
def whole_model(make_base, make_adapters):
    """whole_model(attention, remat) -> (hidden, gradient in the adapters) of two layers, one of each kind, on (2, 1, 2) devices."""
    config = dataclasses.replace(preset("tiny"), layer_kinds=("local", "global"), head_dim=128, sliding_window=100, vocab_size=64)
    base, seen = make_base(config), make_inputs(256)[3]
    params = Params(base, lora=make_adapters(base, targets=("q", "down")), lora_scale=0.5)
    tokens = jnp.asarray(np.random.default_rng(1).integers(0, 64, seen.positions.shape), jnp.int32)
    inputs = Inputs(tokens, seen.positions, seen.segments, jnp.zeros_like(tokens))

    def run(attention, remat):
        mesh = make_mesh(MeshShape(2, 1, 2), jax.devices())
        placed = jax.device_put(params, shard_tree(params, mesh))

        def loss(lora):
            hidden = forward(placed.replace(lora=lora), config, inputs, dtype=jnp.float32, remat=remat, attention=attention)
            return jnp.sum(jnp.sin(hidden) * (seen.segments > 0)[..., None])

        with jax.set_mesh(mesh):
            return jax.jit(jax.value_and_grad(loss))(placed.lora)

    return run


@pytest.mark.parametrize("name", ["blocked", "splash"])
def test_a_whole_model_learns_the_same_by_every_kernel(monkeypatch, whole_model, name):
    """Within the layers' scan, under remat, on a mesh."""
    monkeypatch.setattr(blocked, "BLOCK", 32)
    monkeypatch.setattr(splash, "why_not", lambda *_: "")
    interpreted = functools.partial(splash.attend_splash, interpret=True)
    monkeypatch.setattr(splash, "attend_splash", interpreted)
    expected, found = whole_model("plain", "none"), whole_model(name, "gate_up")
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5 * np.abs(other).max())


def test_the_kernel_is_chosen_by_platform_and_shape():
    choose = functools.partial(kernel.choose, head_dim=256)
    assert [choose("auto", t=t, platform="cpu") for t in (24, 1024, 1025, 8192)] == ["plain", "plain", "blocked", "blocked"]
    assert [choose("auto", t=t, platform="gpu") for t in (1024, 2048)] == ["plain", "blocked"]
    assert [choose("auto", t=t, platform="tpu") for t in (384, 512, 2048, 2049)] == ["plain", "splash", "splash", "blocked"]
    assert choose("auto", t=2048, platform="tpu", has_branches=True) == "blocked"
    assert kernel.choose("auto", t=2048, head_dim=80, platform="tpu") == "blocked"
    for name in kernel.KERNELS:
        assert choose(name, t=2048, platform="tpu") == name


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        (dict(name="flash"), "attention is 'flash'; expected one of auto, plain, blocked, splash; nearest: 'splash'"),
        (dict(platform="cpu"), "'splash', but it is for TPUs, and this is cpu; use 'auto'"),
        (dict(t=2000), "a multiple of 128 tokens a row, and there are 2000"),
        (dict(head_dim=80), "head size that is a multiple of 128, and this model's is 80"),
        (dict(has_branches=True), "branches"),
    ],
)
def test_a_kernel_that_cannot_run_is_refused_with_the_reason(changed, words):
    with pytest.raises(ValueError, match=words):
        kernel.choose(**(dict(name="splash", t=2048, head_dim=256, platform="tpu") | changed))


@pytest.mark.parametrize("t", [512, 2048, 8192])
def test_a_window_saves_what_it_hides(t):
    window = 1024
    exact = sum(min(i + 1, window) for i in range(t))
    for name in ("blocked", "splash"):
        for_local, for_global = kernel.n_scores(name, t, window), kernel.n_scores(name, t, None)
        assert exact <= for_local <= for_global and t * (t + 1) // 2 <= for_global <= t * t
        assert for_local < 1.6 * exact + t * 512
    assert kernel.n_scores("plain", t, window) == attention.causal_scores(t)
