"""That shapes in signatures are looked at while tests run: see tests/shapes.py."""

import jax.numpy as jnp
import pytest

from medkor_jax.model.attention import attend
from medkor_jax.model.layers import merged_matrix, rms_norm
from medkor_jax.train.losses import gather_positions


def arrays(b=2, t=3, n=4, k=2, h=8, s=3):
    return jnp.zeros((b, t, n, h)), jnp.zeros((b, s, k, h)), jnp.zeros((b, s, k, h)), jnp.ones((b, t, s), bool)


def test_what_fits_is_let_through():
    assert attend(*arrays()).shape == (2, 3, 32)


@pytest.mark.parametrize("wrong, words", [
    (dict(k=jnp.zeros((2, 3, 2, 7))), r"attend: k is float32 \(2, 3, 2, 7\), expected Float.*B S K H"),
    (dict(mask=jnp.ones((2, 3, 4), bool)), "attend: mask is bool"), (dict(mask=jnp.ones((2, 3, 3))), "attend: mask is float32"),
    (dict(q=jnp.zeros((3, 4, 8))), "attend: q is float32"),
])  # fmt: skip
def test_another_shape_or_kind_is_refused_with_the_signature(wrong, words):
    given = dict(zip(["q", "k", "v", "mask"], arrays(), strict=True)) | wrong
    with pytest.raises(TypeError, match=words):
        attend(**given)


def test_a_letter_is_one_size_in_a_call_and_any_in_the_next():
    for size in (3, 5):
        rms_norm(jnp.zeros((2, size)), jnp.zeros(size), 1e-6)
    with pytest.raises(TypeError, match="rms_norm: w is"):
        rms_norm(jnp.zeros((2, 3)), jnp.zeros(5), 1e-6)
    with pytest.raises(TypeError, match="merged_matrix: b is"):
        merged_matrix(jnp.zeros((4, 6)), jnp.zeros((4, 2)), jnp.zeros((3, 6)), 1.0)
    with pytest.raises(TypeError, match="gather_positions: positions is"):
        gather_positions(jnp.zeros((2, 5, 4)), jnp.zeros((3, 1), jnp.int32))
