import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medkor_jax.model import attention


def test_visible_is_causal_windowed_and_within_the_document():
    positions = jnp.array([[0, 1, 2, 0, 1, 0]])
    segments = jnp.array([[1, 1, 1, 2, 2, 0]])
    seen = attention.Seen(positions, segments)
    mask = attention.visible(seen, seen, 2)
    expected = [
        [1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [0, 1, 1, 0, 0, 0],  # two back is outside a window of two
        [0, 0, 0, 1, 0, 0],
        [0, 0, 0, 1, 1, 0],
        [0, 0, 0, 0, 0, 1],  # padding sees itself, so its softmax is over something
    ]
    np.testing.assert_array_equal(mask[0], np.array(expected, bool))
    assert attention.visible(seen, seen, None)[0, 2, 0]


def test_branches_see_their_trunk_and_themselves():
    positions, branches = jnp.array([[0, 1, 2, 2, 3]]), jnp.array([[0, 0, 1, 2, 2]])
    seen = attention.Seen(positions, jnp.ones_like(positions), branches)
    mask = attention.visible(seen, seen, None)
    expected = [[1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [1, 1, 1, 0, 0], [1, 1, 0, 1, 0], [1, 1, 0, 1, 1]]
    np.testing.assert_array_equal(mask[0], np.array(expected, bool))


def _inputs(dtype=jnp.float32, t=12, s=12):
    rng = np.random.default_rng(0)
    normal = lambda *shape: jnp.asarray(rng.standard_normal(shape), dtype)
    mask = jnp.asarray(np.tril(rng.random((2, t, s)) < 0.6) | np.eye(t, s, dtype=bool))
    return normal(2, t, 6, 8), normal(2, s, 3, 8), normal(2, s, 3, 8), mask


def _naive(q, k, v, mask):
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    out = np.zeros(q.shape)
    for b, t, n in np.ndindex(q.shape[:3]):
        scores = np.where(mask[b, t], k[b, :, n // 2] @ q[b, t, n], -np.inf)
        weights = np.exp(scores - scores.max())
        out[b, t, n] = weights / weights.sum() @ v[b, :, n // 2]
    return out.reshape(*q.shape[:2], -1)


def test_attend_equals_a_loop_over_heads():
    q, k, v, mask = _inputs()
    np.testing.assert_allclose(
        attention.attend(q, k, v, mask), _naive(q, k, v, np.asarray(mask)), atol=1e-5
    )


def test_bfloat16_inputs_have_a_float32_softmax():
    # scores of 300 and 301 are one value in bfloat16 (steps of 2): the float32 softmax tells them apart
    q, k = (
        jnp.full((1, 1, 1, 2), 16.0, jnp.bfloat16),
        jnp.array([[[[16.0, 2.75]], [[16.0, 2.8125]]]], jnp.bfloat16),
    )
    v = jnp.array([[[[1.0, 0.0]], [[0.0, 1.0]]]], jnp.bfloat16)
    out = attention.attend(q, k, v, jnp.ones((1, 1, 2), bool))
    assert out.dtype == jnp.bfloat16
    np.testing.assert_allclose(
        out[0, 0].astype(np.float32), [1 / (1 + np.e), np.e / (1 + np.e)], rtol=0.01
    )


@pytest.mark.parametrize("block", [4, 5])  # 5 does not divide 12: computed whole
def test_query_blocks_equal_the_whole_in_value_and_gradient(monkeypatch, block):
    *qkv, mask = _inputs()

    def loss(qkv):
        out = attention.attend(*qkv, mask)
        return jnp.sum(jnp.sin(out)), out

    (_, whole), whole_gradient = jax.value_and_grad(loss, has_aux=True)(qkv)
    monkeypatch.setattr(attention, "QUERY_BLOCK", block)
    (_, blocks), gradient = jax.value_and_grad(loss, has_aux=True)(qkv)
    np.testing.assert_allclose(blocks, whole, atol=1e-6)
    for one, other in zip(gradient, whole_gradient):
        np.testing.assert_allclose(one, other, atol=1e-5)


def test_query_blocks_never_hold_all_scores(monkeypatch):
    t = 64
    shapes = [jax.ShapeDtypeStruct((1, t, 8, 4), jnp.float32)] + [
        jax.ShapeDtypeStruct((1, t, 2, 4), jnp.float32)
    ] * 2
    mask = jax.ShapeDtypeStruct((1, t, t), bool)

    def temp_bytes():
        gradient = jax.grad(
            lambda q, k, v, mask: attention.attend(q, k, v, mask).sum(), argnums=(0, 1, 2)
        )
        return jax.jit(gradient).lower(*shapes, mask).compile().memory_analysis().temp_size_in_bytes

    whole = temp_bytes()
    monkeypatch.setattr(attention, "QUERY_BLOCK", 8)
    assert temp_bytes() < 0.5 * whole
