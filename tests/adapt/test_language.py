import jax.numpy as jnp
import pytest

from medkor_jax.adapt.language import make_language
from medkor_jax.model.config import preset


@pytest.mark.parametrize(("kind", "shape"), [("vector", (2, 32)), ("table", (2, 512, 32))])
def test_starts_at_zero_with_a_row_for_each_language(kind, shape):
    lang = make_language(preset("tiny"), kind=kind)
    assert {name: leaf.shape for name, leaf in lang.items()} == {kind: shape}
    assert lang[kind].dtype == jnp.float32 and not lang[kind].any()


def test_unknown_kind_names_the_known_ones():
    with pytest.raises(ValueError, match="'matrix'; expected one of vector, table"):
        make_language(preset("tiny"), kind="matrix")
