import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medkor_jax.model.layers import Adapters, adapted_matmul, make_rope, rms_norm, rotate
from medkor_jax.model.params import ADAPTABLE


def test_rms_norm_is_float32_inside_and_keeps_the_dtype():
    x = jnp.array([[3e4, 4e4]], jnp.bfloat16)  # squares sum past float16's range
    out = rms_norm(x, jnp.array([0.0, 1.0], jnp.bfloat16), 1e-6)
    assert out.dtype == jnp.bfloat16
    np.testing.assert_allclose(
        out.astype(np.float32), [[3 / 12.5**0.5, 2 * 4 / 12.5**0.5]], rtol=2**-8
    )


def test_rms_norm_of_zero_is_zero():
    assert not rms_norm(jnp.zeros((1, 4)), jnp.ones(4), 1e-6).any()


def test_rotation_turns_each_pair_by_position_over_scaling():
    positions = jnp.array([[0, 1, 8]])
    x = jnp.ones((1, 3, 1, 4))
    out = np.asarray(rotate(x, make_rope(positions, 4, 100.0, 2.0)))[0, :, 0]
    for row, position in zip(out, (0, 1, 8)):
        angles = position / 2 * np.array([1.0, 0.1])  # base ** (-2i/H)
        np.testing.assert_allclose(
            row, [*(np.cos(angles) - np.sin(angles)), *(np.cos(angles) + np.sin(angles))], atol=1e-6
        )


def test_scores_depend_on_the_distance_alone():
    q, k = jax.random.normal(jax.random.key(0), (2, 1, 2, 3, 8))
    near = make_rope(jnp.array([[5, 9]]), 8, 1e4, 1.0)
    far = make_rope(jnp.array([[705, 709]]), 8, 1e4, 1.0)
    score = lambda rope: jnp.einsum("bthd,bshd->bhts", rotate(q, rope), rotate(k, rope))
    np.testing.assert_allclose(score(near), score(far), atol=2e-4)


def _pair():
    rng = np.random.default_rng(0)
    x, w = (
        jnp.asarray(rng.standard_normal((2, 5, 6)), jnp.float32),
        jnp.asarray(rng.standard_normal((6, 4)), jnp.float32),
    )
    a, b = (
        jnp.asarray(rng.standard_normal((6, 2)), jnp.float32),
        jnp.asarray(rng.standard_normal((2, 4)), jnp.float32),
    )
    return x, w, a, b


def test_adapter_adds_scale_a_b_to_its_own_matrix_alone():
    x, w, a, b = _pair()
    adapters = Adapters({"v": {"a": a, "b": b}}, scale=0.25)
    np.testing.assert_allclose(
        adapted_matmul(x, w, "v", adapters), x @ (w + 0.25 * (a @ b)), rtol=1e-5, atol=1e-5
    )
    np.testing.assert_array_equal(
        adapted_matmul(x, w, "q", adapters), adapted_matmul(x, w, "q", None)
    )


def test_dropout_falls_on_the_adapter_and_keeps_its_expectation():
    x, w, a, b = _pair()

    def adapted(key, dropout):
        return adapted_matmul(x, w, "o", Adapters({"o": {"a": a, "b": b}}, key, 2.0, dropout))

    keys = jax.random.split(jax.random.key(1), 20_000)
    many = np.asarray(jax.vmap(lambda key: adapted(key, 0.4))(keys))
    base, full = np.asarray(x @ w), np.asarray(adapted(None, 0.0))
    error = many.std(axis=0) / len(keys) ** 0.5
    assert (np.abs(many.mean(axis=0) - full) < 5 * error).all()
    # var of x_i * keep / (1 - p) is x_i^2 p / (1 - p): the base product carries none of it
    expected = 2.0 * np.sqrt(
        np.einsum("bti,io->bto", np.asarray(x) ** 2, np.asarray(a @ b) ** 2) * 0.4 / 0.6
    )
    np.testing.assert_allclose(many.std(axis=0), expected, rtol=0.05)
    assert np.abs(base - full).max() > 0.1


@pytest.mark.parametrize("key", [None, jax.random.key(0)])
def test_no_dropout_without_a_rate_or_a_key(key):
    x, w, a, b = _pair()
    plain = adapted_matmul(x, w, "o", Adapters({"o": {"a": a, "b": b}}))
    rate = 0.0 if key is not None else 0.5
    np.testing.assert_array_equal(
        adapted_matmul(x, w, "o", Adapters({"o": {"a": a, "b": b}}, key, 1.0, rate)), plain
    )


def test_each_matrix_drops_its_own_inputs():
    x, zero, a = jnp.ones((1, 1, 64)), jnp.zeros((64, 64)), jnp.eye(64)
    key = jax.random.key(0)
    seen = {
        tuple(
            np.asarray(
                adapted_matmul(x, zero, name, Adapters({name: {"a": a, "b": a}}, key, 1.0, 0.5))
            ).ravel()
            > 0
        )
        for name in ADAPTABLE
    }
    assert len(seen) == len(ADAPTABLE)
