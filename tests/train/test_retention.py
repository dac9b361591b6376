import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medkor_jax.adapt.expansion import make_expansion
from medkor_jax.model.config import preset
from medkor_jax.model.forward import (
    Inputs,
    edge_inputs,
    embed,
    forward,
    layer_inputs,
    make_view,
    run_layer,
)
from medkor_jax.model.layers import rms_norm
from medkor_jax.model.params import Params
from medkor_jax.plan.program import read_program
from medkor_jax.train.compute import ComputeSettings
from medkor_jax.train.each_layer import Comparison, each_layer, n_compared
from medkor_jax.train.retention import Retention, choose_layers, choose_positions

C = preset("tiny")
L = C.n_layers
ALL = jnp.full(L, 1 / L)


@pytest.fixture(scope="module")
def batch(make_batch):
    return make_batch(C, rows=3)


@pytest.fixture(scope="module")
def student(make_base, make_adapters):
    base = make_base(C)
    return Params(
        base, lora=make_adapters(base), lang={"vector": 0.3 * jnp.ones((2, 32))}, lora_scale=0.5
    )


@pytest.fixture(scope="module")
def teacher(student, make_adapters):
    """The same base with an adapter and a scale of its own, and no language embedding."""
    return Params(
        student.base,
        lora=make_adapters(student.base, seed=1, rank=2, targets=("q", "up")),
        lora_scale=1.5,
    )


@functools.partial(jax.jit, static_argnames=("temperature", "remat", "n_drawn"))
def compare(student, teacher, batch, layer_weights, temperature=2.0, remat="none", n_drawn=0):
    """Returns ((total loss, (hidden, total, per layer)), gradient in the student's small trees)."""

    compared = Comparison(
        batch["loss_positions"], batch["loss_weights"], layer_weights, n_drawn, temperature
    )

    def loss(trees):
        hidden, sums = each_layer(
            student.replace(**trees),
            teacher,
            C,
            Inputs.of(batch),
            compared,
            ComputeSettings("float32", remat, chunk=9),
        )
        return sums.total.loss, (hidden, sums.total, sums.per_place)

    with jax.numpy_dtype_promotion("strict"):
        return jax.value_and_grad(loss, has_aux=True)(small_trees(student))


def small_trees(params):
    return {"lora": params.lora, "lang": params.lang, "expand": params.expand}


@functools.partial(jax.jit, static_argnames="temperature")
def compare_naively(student, teacher, batch, temperature=2.0):
    """Keeps every hidden state and whole logits, layer after layer; all places count alike."""
    inputs = Inputs.of(batch)
    view = make_view(C, inputs.seen)

    def log_probabilities(params):
        x, kept = embed(params, C, inputs.tokens, inputs.langs, jnp.float32), []
        step = jax.jit(lambda layer, x: run_layer(C, view, layer, x, params.lora_scale))

        def run(stack, x, keep=False):
            for i in range(stack.plan.is_local.shape[0]):
                x = step(jax.tree.map(lambda leaf: jnp.asarray(leaf)[i], stack), x)
                if keep:
                    kept.append(rms_norm(x, params.base["final_norm"], C.rms_eps))
            return x

        for stack in edge_inputs(params, C, "front"):
            x = run(stack, x)
        x = run(layer_inputs(params, C, None), x, keep=True)
        for stack in edge_inputs(params, C, "back"):
            x = run(stack, x)
        if "back" in student.expand or "back" in teacher.expand:
            kept.append(rms_norm(x, params.base["final_norm"], C.rms_eps))
        kept = jnp.take_along_axis(
            jnp.stack(kept), batch["loss_positions"][None, ..., None], axis=2
        )
        return jax.nn.log_softmax(kept @ params.base["embed"].T / temperature)

    def losses(trees):
        p, log_q = jnp.exp(log_probabilities(teacher)), log_probabilities(student.replace(**trees))
        per_layer = -jnp.sum(p * log_q * batch["loss_weights"][None, ..., None], axis=(1, 2, 3))
        entropy = -jnp.sum(p * jnp.log(p) * batch["loss_weights"][None, ..., None], axis=(1, 2, 3))
        return per_layer.mean(), (per_layer, entropy)

    return jax.value_and_grad(losses, has_aux=True)(small_trees(student))


@pytest.mark.parametrize(
    ("of_student", "of_teacher", "remat"),
    [
        ((0, 0), (0, 0), "none"),
        ((0, 0), (0, 0), "full"),
        ((0, 0), (0, 0), "all_but_down"),
        ((2, 1), (0, 0), "gate_up"),
        ((1, 1), (0, 2), "none"),
    ],
)
def test_all_layers_equal_the_naive_in_value_and_gradient(
    student, teacher, batch, make_blocks, of_student, of_teacher, remat
):
    """Sides: how many layers each model has in front and behind; the base's are compared with their own counterparts."""
    if any(of_student):
        student = student.replace(expand=make_blocks(student.base, *of_student))
    if any(of_teacher):
        teacher = teacher.replace(expand=make_blocks(teacher.base, *of_teacher, seed=1))
    n = L + 1 if of_student[1] or of_teacher[1] else L
    assert n_compared(C, student, teacher) == n
    (loss, (hidden, total, per_layer)), gradient = compare(
        student, teacher, batch, jnp.full(n, 1 / n), remat=remat
    )
    (naive, (naive_layers, entropy)), naive_gradient = compare_naively(student, teacher, batch)
    np.testing.assert_allclose(loss, naive, rtol=1e-5)
    np.testing.assert_allclose(per_layer.loss, naive_layers, rtol=1e-5)
    np.testing.assert_allclose(per_layer.entropy, entropy, rtol=1e-5)
    np.testing.assert_allclose(total.entropy, entropy.mean(), rtol=1e-5)
    np.testing.assert_allclose(per_layer.weight, batch["loss_weights"].sum(), rtol=1e-6)
    assert (np.asarray(per_layer.loss - per_layer.entropy) > 0.01).all()  # the two models do differ
    for one, other in zip(jax.tree.leaves(gradient), jax.tree.leaves(naive_gradient), strict=True):
        np.testing.assert_allclose(one, other, atol=2e-5 * np.abs(other).max())
    np.testing.assert_allclose(
        hidden, forward(student, C, Inputs.of(batch), dtype=jnp.float32), atol=1e-5
    )


def test_only_drawn_layers_count_and_the_others_report_nothing(student, teacher, batch):
    _, (_, every, each) = compare(student, teacher, batch, ALL)[0]
    drawn = jnp.array([0, 0.5, 0, 0, 0.5, 0, 0])
    _, (_, total, per_layer) = compare(student, teacher, batch, drawn)[0]
    np.testing.assert_allclose(per_layer.loss, np.where(drawn > 0, each.loss, 0.0), rtol=1e-6)
    np.testing.assert_allclose(total.loss, (each.loss[1] + each.loss[4]) / 2, rtol=1e-6)
    np.testing.assert_allclose(total.weight, every.weight, rtol=1e-6)


@pytest.mark.parametrize("per_step", [1, 3])
def test_the_head_is_computed_for_as_many_places_as_are_drawn(student, teacher, batch, per_step):
    """The same numbers and gradients as with room for all, at the price of per_step of them."""
    weights = choose_layers(jax.random.key(2), L, per_step)
    few, all_places = (compare(student, teacher, batch, weights, n_drawn=n) for n in (per_step, 0))
    for one, other in zip(jax.tree.leaves(few), jax.tree.leaves(all_places), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5 * np.abs(other).max())
    compiled = [
        compare.lower(student, teacher, batch, weights, n_drawn=n).compile()
        for n in (per_step, 2 * per_step)
    ]
    flops = [read_program(program.as_text()).flops for program in compiled]
    head = (
        6 * batch["loss_positions"].size * C.d_model * C.vocab_size
    )  # both models' logits, and what pulls
    assert flops[1] - flops[0] == pytest.approx(per_step * head, rel=0.1)


def test_a_fresh_expansion_is_compared_as_if_it_were_not_there(student, teacher, batch):
    """The place at the end then says what the last layer of the base says, and can be drawn alone."""
    (_, (hidden, _, plain)), _ = compare(student, teacher, batch, ALL)
    expanded = student.replace(expand=make_expansion(student.base, front=2, back=1))
    (_, (same_hidden, _, found)), _ = compare(
        expanded, teacher, batch, jnp.full(L + 1, 1 / (L + 1))
    )
    np.testing.assert_array_equal(same_hidden, hidden)
    for name in ("loss", "entropy", "correct", "weight"):
        each = getattr(plain, name)
        np.testing.assert_allclose(
            getattr(found, name), np.append(each, each[-1]), rtol=1e-6, err_msg=name
        )
    (loss, (_, total, alone)), _ = compare(
        expanded, teacher, batch, jnp.zeros(L + 1).at[L].set(1.0)
    )
    np.testing.assert_allclose(alone.loss, np.append(np.zeros(L), plain.loss[-1]), rtol=1e-6)
    np.testing.assert_allclose([loss, total.loss], plain.loss[-1], rtol=1e-6)


def test_what_a_new_last_layer_does_to_english_is_held(student, teacher, batch, make_blocks):
    """Its weights learn from retention, and from the place at the end alone; those of a front block from every place."""
    expanded = student.replace(expand=make_blocks(student.base))
    for places, is_back_held in ((jnp.ones(L + 1), True), (jnp.ones(L + 1).at[L].set(0.0), False)):
        gradient = compare(expanded, teacher, batch, places)[1]["expand"]
        assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(gradient["front"]))
        assert all(
            (np.abs(leaf).max() > 0) == is_back_held for leaf in jax.tree.leaves(gradient["back"])
        )


def test_a_place_too_few_or_too_many_is_refused(student, teacher, batch):
    assert n_compared(C, student, None) == L
    for params, n in ((student, L + 1), (student.replace(expand=make_expansion(student.base)), L)):
        with pytest.raises(
            ValueError, match=rf"shape \({n},\); these models are compared at {15 - n} places"
        ):
            compare(params, teacher, batch, jnp.ones(n))


def test_a_student_equal_to_its_reference_has_no_divergence_and_no_gradient(teacher, batch):
    (_, (_, total, _)), gradient = compare(teacher, teacher, batch, ALL)
    assert float(total.loss - total.entropy) == pytest.approx(
        0.0, abs=1e-3 * float(total.loss) / 100
    )
    (_, _), other = compare(
        teacher.replace(lora=jax.tree.map(lambda x: x * 1.1, teacher.lora)), teacher, batch, ALL
    )
    for one, moved in zip(jax.tree.leaves(gradient), jax.tree.leaves(other), strict=True):
        assert np.abs(one).max() < 1e-3 * np.abs(moved).max()


def test_the_reference_gets_no_gradient(student, teacher, batch):
    def loss(trees):
        return compare(student, teacher.replace(**trees), batch, ALL)[0][0]

    for leaf in jax.tree.leaves(
        jax.grad(loss)({"lora": teacher.lora, "lang": {"vector": jnp.zeros((2, 32))}})
    ):
        assert not leaf.any()


def _lowered(batch, params, per_step, remat):
    weights = choose_layers(jax.random.key(0), L, per_step)
    return compare.lower(params, params, batch, weights, 2.0, remat, per_step).compile()


def test_hidden_states_are_not_kept_for_every_layer(student, make_batch):
    """With remat the memory holds one hidden state a layer for the backward pass: the student's, not the teacher's."""
    batch = make_batch(C, rows=8, length=256, loss_positions=4)
    one_stream = L * 8 * 256 * C.d_model * 4
    attention = 8 * 256 * 256 * C.n_heads * 4  # scores of one layer
    used = _lowered(batch, student, 2, "full").memory_analysis().temp_size_in_bytes
    assert used < one_stream + 6 * attention


def test_remat_does_not_compute_the_head_or_the_reference_again(student, batch):
    """Remat adds less than the student's own forward pass; the head alone is more than that here."""
    flops = [
        _lowered(batch, student, 2, remat).cost_analysis()["flops"] for remat in ("none", "full")
    ]
    plain = jax.jit(lambda p, i: forward(p, C, i, dtype=jnp.float32)).lower(
        student, Inputs.of(batch)
    )
    assert flops[1] - flops[0] < 1.1 * plain.compile().cost_analysis()["flops"]


def test_drawn_layers_have_exact_weights_and_the_right_expectation():
    draw = jax.jit(jax.vmap(lambda key: choose_layers(key, L, 3)))
    weights = np.asarray(draw(jax.random.split(jax.random.key(0), 4000)))
    assert ((weights > 0).sum(axis=1) == 3).all() and set(np.unique(weights)) == {
        0.0,
        np.float32(1 / 3),
    }
    np.testing.assert_allclose(
        weights.mean(axis=0), 1 / L, atol=5 * (1 / 3) * (3 / 7 * 4 / 7 / 4000) ** 0.5
    )


@pytest.mark.parametrize("per_step", [0, L, L + 5])
def test_all_layers_are_taken_when_none_or_enough_are_asked_for(per_step):
    np.testing.assert_array_equal(
        choose_layers(jax.random.key(0), L, per_step), np.full(L, np.float32(1 / L))
    )


def test_the_last_layer_alone_is_what_the_model_finally_says(student, teacher, batch):
    """`at="last"` weighs one place, always the same, whatever is drawn; it is the cross entropy of the two models' outputs."""
    held = Retention(weight=1.0, at="last", layers=4)
    places = held.places(jax.random.key(1), L)
    np.testing.assert_array_equal(places, np.eye(L, dtype=np.float32)[-1])
    assert held.most_places == 1 and Retention(weight=1.0, layers=4).most_places == 4
    (loss, _), _ = compare(student, teacher, batch, places, 1.0, n_drawn=held.most_places)
    last = [
        jax.nn.log_softmax(
            forward(model, C, Inputs.of(batch), dtype=jnp.float32) @ model.base["embed"].T
        )
        for model in (student, teacher)
    ]
    each = -jnp.sum(jnp.exp(last[1]) * last[0], axis=-1)
    at = jnp.take_along_axis(each, batch["loss_positions"], axis=1)
    np.testing.assert_allclose(loss, jnp.sum(at * batch["loss_weights"]), rtol=1e-5)


def test_drawn_positions_are_distinct_weighted_and_unbiased_over_uneven_rows():
    weights = np.zeros((4, 9), np.float32)
    weights[0, :9], weights[1, 2:7], weights[2, 8] = (
        1.0,
        1.0,
        0.5,
    )  # 9, 5, 1 and 0 positions carry loss
    values = np.random.default_rng(0).random((4, 9))
    draw = jax.jit(jax.vmap(lambda key: choose_positions(key, weights, 3)))
    indices, drawn = map(np.asarray, draw(jax.random.split(jax.random.key(0), 4000)))
    assert (np.sort(indices, axis=-1)[..., 1:] > np.sort(indices, axis=-1)[..., :-1]).all()
    taken = np.take_along_axis(np.broadcast_to(weights, (4000, 4, 9)), indices, axis=2)
    np.testing.assert_array_equal(drawn > 0, taken > 0)
    np.testing.assert_allclose(
        drawn.sum(axis=2), np.broadcast_to([9, 5, 1, 0], (4000, 4)), rtol=1e-6
    )
    sums = (drawn * np.take_along_axis(np.broadcast_to(values, (4000, 4, 9)), indices, axis=2)).sum(
        axis=2
    )
    expected = (values * (weights > 0)).sum(axis=1)
    assert (np.abs(sums.mean(axis=0) - expected) <= 5 * sums.std(axis=0) / 4000**0.5 + 1e-6).all()


def test_all_positions_are_taken_when_none_or_enough_are_asked_for():
    weights = np.array([[0.5, 0.0, 1.0]], np.float32)
    for per_row in (0, 3, 7):
        indices, drawn = choose_positions(jax.random.key(0), weights, per_row)
        np.testing.assert_array_equal(indices, [[0, 1, 2]])
        np.testing.assert_array_equal(drawn, [[1.0, 0.0, 1.0]])


@pytest.mark.parametrize(
    "wrong", [{"weight": -1.0}, {"layers": -1}, {"positions": -1}, {"temperature": 0.0}]
)
def test_impossible_settings_are_refused(wrong):
    with pytest.raises(ValueError, match="retention needs"):
        Retention(**wrong)


def test_another_place_than_each_or_the_last_is_refused():
    with pytest.raises(ValueError, match="retention.at is 'first'; expected 'each' or 'last'"):
        Retention(at="first")
