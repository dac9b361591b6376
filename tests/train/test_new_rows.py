"""A head with new rows behind its frozen table: losses and gradients are those of one whole table."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medkor_jax.train.losses import token_losses
from medkor_jax.train.new_rows import NewRows

B, M, D, V, N = 3, 7, 8, 50, 6
RNG = np.random.default_rng(0)
HIDDEN, TEACHER = (jnp.asarray(x, jnp.float32) for x in RNG.standard_normal((2, B, M, D)))
TABLE = jnp.asarray(RNG.standard_normal((V, D)), jnp.float32)
ROWS, THEIRS = (jnp.asarray(x, jnp.float32) for x in RNG.standard_normal((2, N, D)))
IDS = jnp.asarray(RNG.integers(0, V + N, (B, M)), jnp.int32)
COTANGENT = jnp.asarray(RNG.random((B, M)), jnp.float32)


def naive(hidden, rows, targets, theirs, temperature):
    """Returns (nats, entropy, correct, highest), each [B, M], of whole arrays."""
    logits = hidden @ jnp.concatenate([TABLE, rows]).T / temperature
    log_q = jax.nn.log_softmax(logits)
    if targets.ndim == 2:
        p = jax.nn.one_hot(targets, V + N)
        entropy = jnp.zeros((B, M))
    else:
        of_new = targets @ theirs.T if theirs is not None else jnp.full((B, M, N), -jnp.inf)
        p = jax.nn.softmax(jnp.concatenate([targets @ TABLE.T, of_new], -1) / temperature)
        entropy = -jnp.sum(jax.scipy.special.xlogy(p, p), -1)
    correct = p.argmax(-1) == logits.argmax(-1)
    return -(p * log_q).sum(-1), entropy, correct, logits.max(-1)


@pytest.mark.parametrize("chunk", [4, 10_000])
@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize(
    ("targets", "theirs"),
    [(IDS, None), (TEACHER, None), (TEACHER, THEIRS)],
    ids=["ids", "a teacher without new rows", "a teacher with its own"],
)
def test_loss_and_gradients_are_those_of_one_whole_table(chunk, temperature, targets, theirs):
    def ours(hidden, rows):
        new = NewRows(rows, theirs)
        each = token_losses(hidden, TABLE, targets, chunk=chunk, temperature=temperature, new=new)
        return jnp.sum(each.nats * COTANGENT), each

    def whole(hidden, rows):
        each = naive(hidden, rows, targets, theirs, temperature)
        return jnp.sum(each[0] * COTANGENT), each

    with jax.numpy_dtype_promotion("strict"):
        gradients, each = jax.jit(jax.grad(ours, argnums=(0, 1), has_aux=True))(HIDDEN, ROWS)
    expected, of = jax.grad(whole, argnums=(0, 1), has_aux=True)(HIDDEN, ROWS)
    for got, wanted in zip((each.nats, each.entropy, each.correct, each.highest), of, strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=2e-6)
    assert 0 < np.sum(of[2]) < B * M or targets is not IDS
    for got, wanted in zip(gradients, expected, strict=True):
        np.testing.assert_allclose(got, wanted, atol=1e-5)
