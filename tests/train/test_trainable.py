import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medkor_jax.model.params import Params, leaf_paths
from medkor_jax.train.trainable import (
    OptimizerRule,
    Schedule,
    assign_rules,
    count,
    join,
    learning_rate,
    make_optimizer,
    split,
)

LORA = {"q": {"a": jnp.ones((2, 4, 3)), "b": jnp.ones((2, 3, 4))}}
LANG = {"vector": jnp.ones((2, 4))}
PARAMS = Params({"embed": jnp.ones((5, 4))}, lora=LORA, lang=LANG, lora_scale=0.25)
LORA_RULE, LANG_RULE = (
    OptimizerRule("lora", r"lora/.*", 1e-2),
    OptimizerRule("lang", r"lang/.*", 1e-3),
)


def test_split_and_join_are_inverse_and_split_empties_what_trains():
    trainable, frozen = split(PARAMS, ("lang",))
    assert trainable == {"lang": LANG} and frozen == PARAMS.replace(lang={})
    assert join(trainable, frozen) == PARAMS


@pytest.mark.parametrize(
    ("trees", "named"),
    [
        (("base",), "'base' cannot train"),
        (("lora", "expand"), "'expand' is empty"),
        ((), "no tree"),
    ],
)
def test_what_cannot_train_is_refused(trees, named):
    with pytest.raises(ValueError, match=named):
        split(PARAMS, trees)


def test_each_leaf_gets_the_name_of_its_one_rule():
    rules = (
        OptimizerRule("a", r"lora/\w+/a", 1.0),
        OptimizerRule("b", r"lora/\w+/b", 1.0),
        LANG_RULE,
    )
    labels = assign_rules(rules, {"lora": LORA, "lang": LANG})
    assert leaf_paths(labels) == {"lora/q/a": "a", "lora/q/b": "b", "lang/vector": "lang"}


@pytest.mark.parametrize(
    ("rules", "named"),
    [
        ((LORA_RULE,), "lang/vector: no rule"),
        ((LORA_RULE, LANG_RULE, OptimizerRule("b", r".*/b", 1.0)), "lora/q/b: lora and b"),
        ((LORA_RULE, LANG_RULE, OptimizerRule("idle", r"expand/.*", 1.0)), "'idle'"),
        (
            (LORA_RULE, OptimizerRule("lang", r"lang", 1.0)),
            "lang/vector: no rule",
        ),  # the whole path must match
        ((LORA_RULE, OptimizerRule("lora", r"lang/.*", 1.0)), "share the name 'lora'"),
    ],
)
def test_rules_must_cover_each_leaf_exactly_once(rules, named):
    with pytest.raises(ValueError, match=named):
        make_optimizer(rules, Schedule(10, 0, 0.1, 1.0), {"lora": LORA, "lang": LANG})


def test_frozen_trees_have_no_optimizer_state():
    trainable, _ = split(PARAMS, ("lang",))
    state = make_optimizer((LANG_RULE,), Schedule(10, 0, 0.1, 1.0), trainable).init(trainable)
    assert sorted(leaf.size for leaf in jax.tree.leaves(state) if leaf.ndim) == [
        8,
        8,
    ]  # two moments of [2, 4]


def test_each_rule_has_its_own_rate_and_decay():
    trainable = {"lora": LORA, "lang": LANG}
    rules = (LORA_RULE, OptimizerRule("lang", r"lang/.*", 1e-3, weight_decay=0.5))
    optimizer = make_optimizer(rules, Schedule(10, 0, 0.1, 1e9), trainable)
    update, _ = optimizer.update(
        jax.tree.map(jnp.ones_like, trainable), optimizer.init(trainable), trainable
    )
    np.testing.assert_allclose(
        update["lora"]["q"]["a"], -1e-2, rtol=1e-5
    )  # Adam's first step has size 1
    np.testing.assert_allclose(update["lang"]["vector"], -1e-3 * (1 + 0.5), rtol=1e-5)


def test_norms_of_added_layers_do_not_decay():
    trainable = {
        "expand": {"back": {"q": jnp.ones((1, 4, 4)), "post_attn_norm": -jnp.ones((1, 4))}},
        "lang": LANG,
    }
    rules = (OptimizerRule("expand", r"expand/.*", 1e-2, weight_decay=0.5), LANG_RULE)
    optimizer = make_optimizer(rules, Schedule(10, 0, 0.1, 1.0), trainable)
    update, _ = optimizer.update(
        jax.tree.map(jnp.zeros_like, trainable), optimizer.init(trainable), trainable
    )
    np.testing.assert_allclose(update["expand"]["back"]["q"], -1e-2 * 0.5, rtol=1e-5)
    assert not update["expand"]["back"]["post_attn_norm"].any()


def test_the_global_norm_over_all_rules_is_clipped_before_adam():
    """After a large first gradient, the second step shows how much of it the moments remember."""
    trainable = {"lora": {"q": {"a": jnp.zeros(1)}}, "lang": {"vector": jnp.zeros(1)}}

    def second_step(first, clip_norm):
        optimizer = make_optimizer(
            (LORA_RULE, LANG_RULE), Schedule(10, 0, 0.1, clip_norm), trainable
        )
        gradients = [jax.tree.map(lambda _, g=g: jnp.full(1, g), trainable) for g in (first, 0.01)]
        state = optimizer.init(trainable)
        for gradient in gradients:
            update, state = optimizer.update(gradient, state, trainable)
        return float(update["lang"]["vector"][0])

    # two leaves of 30 have norm 42.4; clipped to 1 each is 2 ** -0.5
    assert second_step(30.0, 1.0) == pytest.approx(second_step(2**-0.5, 1e9), rel=1e-4)
    assert abs(second_step(30.0, 1.0) / second_step(30.0, 1e9) - 1) > 1e-3
    assert second_step(0.1, 1.0) == pytest.approx(second_step(0.1, 1e9), rel=1e-6)


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        (Schedule(8, 4, 0.1, 1.0), {0: 0.25, 1: 0.5, 3: 1.0, 4: 1.0, 6: 0.55, 8: 0.1, 20: 0.1}),
        (Schedule(4, 0, 0.5, 1.0), {0: 1.0, 2: 0.75, 4: 0.5}),
        (Schedule(4, 1, 0.0, 1.0), {0: 1.0, 1: 1.0, 4: 0.0}),
        (Schedule(1, 100, 0.1, 1.0), {0: 1.0}),  # a one-step stage learns at the full rate
        (
            Schedule(3, 100, 0.1, 1.0),
            {0: 0.5, 1: 1.0, 2: 1.0},
        ),  # a warm-up longer than the stage ends inside it
    ],
)
def test_learning_rate_values(schedule, expected):
    rate = learning_rate(OptimizerRule("g", ".*", 2.0), schedule)
    assert {step: float(rate(step)) / 2.0 for step in expected} == pytest.approx(expected, abs=1e-6)


def test_count_says_what_learns():
    assert count({"lora": LORA, "lang": LANG}) == "3 leaves, 56 parameters"


def test_a_rule_names_its_optimizer_and_that_one_is_used():
    """Against the updates by hand: three steps of a constant gradient of 1, at a rate of 0.1 that does not fall."""
    trainable = {"lora": {"q": {"a": jnp.zeros(1)}}}

    def moved(**numbers):
        optimizer = make_optimizer(
            (OptimizerRule("lora", ".*", 0.1, **numbers),), Schedule(3, 0, 1.0, 1e9), trainable
        )
        state, at = optimizer.init(trainable), trainable
        for _ in range(3):
            update, state = optimizer.update(jax.tree.map(jnp.ones_like, at), state, at)
            at = jax.tree.map(jnp.add, at, update)
        return float(at["lora"]["q"]["a"][0])

    assert moved(optimizer="sgd") == pytest.approx(-0.3)
    assert moved(optimizer="sgd", momentum=0.5) == pytest.approx(-0.1 * (1 + 1.5 + 1.75))
    assert moved() == pytest.approx(-0.3, rel=1e-4)  # Adam: each step has size 1


@pytest.mark.parametrize(
    ("numbers", "named"),
    [
        (dict(optimizer="adam"), "'adam'; expected adamw or sgd; nearest: 'adamw'"),
        (dict(momentum=0.9), "momentum is 0.9, which adamw does not read"),
        (
            dict(optimizer="sgd", weight_decay=0.1),
            "weight_decay is 0.1, which sgd does not read .it reads momentum",
        ),
        (dict(optimizer="sgd", b2=0.99), "b2 is 0.99"),
    ],
)
def test_numbers_that_the_optimizer_does_not_read_are_refused(numbers, named):
    with pytest.raises(ValueError, match=named):
        OptimizerRule("lora", "lora/.*", 0.1, **numbers)
