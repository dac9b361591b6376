import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medkor_jax.adapt.lora import check_targets, make_lora, merge
from medkor_jax.model.config import preset
from medkor_jax.model.forward import Inputs, forward
from medkor_jax.model.params import Params, abstract_base

C = preset("tiny")


def test_fresh_adapters_have_a_random_and_b_zero():
    base = abstract_base(C, jnp.bfloat16)  # shapes are enough
    lora = make_lora(base, jax.random.key(0), rank=5, targets=("q", "o", "down"))
    assert {name: (ab["a"].shape, ab["b"].shape) for name, ab in lora.items()} == {
        "q": ((7, 32, 5), (7, 5, 64)),
        "o": ((7, 64, 5), (7, 5, 32)),
        "down": ((7, 64, 5), (7, 5, 32)),
    }
    for ab in lora.values():
        assert ab["a"].dtype == ab["b"].dtype == jnp.float32
        assert not ab["b"].any()
        bound = ab["a"].shape[1] ** -0.5
        assert float(ab["a"].std()) == pytest.approx(bound / 3**0.5, rel=0.1)
        assert 0.95 * bound < np.abs(ab["a"]).max() <= bound
    assert np.abs(lora["o"]["a"] - lora["down"]["a"]).max() > 0.1  # same shape, not the same draw


def test_a_that_is_kept_in_bfloat16_is_drawn_as_finely():
    base = abstract_base(C, jnp.float32)
    a = make_lora(base, jax.random.key(0), rank=64, targets=("down",), dtype=jnp.bfloat16)["down"][
        "a"
    ]
    assert a.dtype == jnp.bfloat16 and len(np.unique(np.abs(np.asarray(a, np.float32)))) > 500


def test_a_is_drawn_as_peft_draws_it():
    """A rate that was found there forgets more here where A is wider: docs/STUDY.md."""
    peft, torch = pytest.importorskip("peft"), pytest.importorskip("torch")
    torch.manual_seed(0)
    base = abstract_base(C, jnp.float32)
    ours = make_lora(base, jax.random.key(0), rank=5, targets=("down",))["down"]["a"]
    model = torch.nn.Sequential(*[torch.nn.Linear(ours.shape[1], 8) for _ in range(len(ours))])
    theirs = peft.get_peft_model(
        model, peft.LoraConfig(r=5, target_modules=[str(i) for i in range(len(ours))])
    )
    drawn = [w.detach().numpy() for name, w in theirs.named_parameters() if "lora_A" in name]
    assert np.stack(drawn).shape == np.swapaxes(ours, 1, 2).shape
    assert np.std(ours) == pytest.approx(np.std(drawn), rel=0.05)
    assert np.abs(ours).max() == pytest.approx(np.abs(drawn).max(), rel=0.02)


@pytest.mark.parametrize(
    ("targets", "rank", "named"),
    [(("q", "qq"), 4, "'qq' is none of.*nearest: 'q'"), (("q", "q"), 4, "each once"), ((), 4, "at least one"),
     (("q",), 0, "rank is 0"), (("embed",), 4, "'embed' is none of")],
)  # fmt: skip
def test_wrong_targets_and_ranks_are_refused(targets, rank, named):
    with pytest.raises(ValueError, match=named):
        check_targets(targets, rank)


@pytest.mark.parametrize(
    ("dtype", "lora_dtype"),
    [(jnp.float32, jnp.float32), (jnp.bfloat16, jnp.float32), (jnp.bfloat16, jnp.bfloat16)],
)
def test_merge_rounds_once_to_the_dtype_of_the_base(make_base, make_adapters, dtype, lora_dtype):
    base = make_base(C, dtype=dtype)
    lora = jax.tree.map(lambda x: x.astype(lora_dtype), make_adapters(base, targets=("q", "down")))
    merged = merge(base, lora, scale=0.7)
    for name, leaf in base["layers"].items():
        if name not in lora:
            assert merged["layers"][name] is leaf
            continue
        a, b = (lora[name][x].astype(np.float64) for x in "ab")
        exact = np.asarray(leaf, np.float64) + 0.7 * a @ b
        found = merged["layers"][name]
        assert found.dtype == dtype
        if dtype == jnp.float32:
            np.testing.assert_allclose(np.asarray(found), exact, rtol=0, atol=5e-7)
        else:  # the nearest bfloat16, but where float32's own error moves a tie
            nearest = exact.astype(jnp.bfloat16)
            assert (np.asarray(found) == nearest).mean() > 0.999
    assert merged["embed"] is base["embed"] and merged["final_norm"] is base["final_norm"]


def test_merged_equals_adapted(make_base, make_adapters, make_batch):
    base = make_base(C)
    lora = make_adapters(base)
    inputs = Inputs.of(make_batch(C, rows=2))
    run = jax.jit(functools.partial(forward, config=C, dtype=jnp.float32))
    adapted = run(Params(base, lora=lora, lora_scale=0.7), inputs=inputs)
    merged = run(Params(merge(base, lora, scale=0.7)), inputs=inputs)
    np.testing.assert_allclose(merged, adapted, atol=1e-4)
    assert np.abs(adapted - run(Params(base), inputs=inputs)).max() > 0.3


def test_merge_names_an_adapter_that_does_not_fit(make_base, make_adapters):
    base = make_base(C)
    pair = make_adapters(base, targets=("k",))["k"]
    with pytest.raises(ValueError, match="'kk' has no matrix in the base"):
        merge(base, {"kk": pair}, scale=1.0)
    for other in ("o", "q"):
        with pytest.raises(ValueError, match=rf"'{other}' has A \(7, 32, 3\)"):
            merge(base, {other: pair}, scale=1.0)
