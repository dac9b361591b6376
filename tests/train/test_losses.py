import re

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from medkor_jax.parallel.mesh import MeshShape, make_mesh
from medkor_jax.train.losses import cross_entropy, gather_positions, token_losses

B, M, D, V = 3, 7, 8, 50
RNG = np.random.default_rng(0)
HIDDEN, TEACHER = RNG.standard_normal((2, B, M, D)).astype(np.float32)
TABLE = jnp.asarray(RNG.standard_normal((V, D)), jnp.float32)
IDS = RNG.integers(0, V, (B, M)).astype(np.int32)
WEIGHTS = (RNG.random((B, M)) * (RNG.random((B, M)) < 0.7)).astype(
    np.float32
)  # fractions, and zeros


def naive(hidden, targets, temperature):
    """Returns (loss, entropy, correct, weight, d loss / d hidden) in float64 from whole [B, M, V] arrays."""
    hidden, table, weights = (np.asarray(x, np.float64) for x in (hidden, TABLE, WEIGHTS))

    def log_softmax(x):
        x = x - x.max(-1, keepdims=True)
        return x - np.log(np.exp(x).sum(-1, keepdims=True))

    log_q = log_softmax(hidden @ table.T / temperature)
    if targets.ndim == 2:
        p = np.eye(V)[targets]
        entropy = np.zeros((B, M))
    else:
        log_p = log_softmax(np.asarray(targets, np.float64) @ table.T / temperature)
        p = np.exp(log_p)
        entropy = -(p * log_p).sum(-1)
    loss = -(p * log_q).sum(-1)
    gradient = (np.exp(log_q) - p) @ table / temperature * weights[..., None]
    correct = p.argmax(-1) == log_q.argmax(-1)
    return *((weights * x).sum() for x in (loss, entropy, correct)), weights.sum(), gradient


@pytest.mark.parametrize("chunk", [1, 6, 12, 10_000])  # 1, 2, 4 and all 7 of a row at once
@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("targets", [IDS, TEACHER], ids=["ids", "teacher"])
def test_chunked_loss_and_gradient_equal_the_naive(chunk, temperature, targets):
    def loss(hidden):
        sums = cross_entropy(hidden, TABLE, targets, WEIGHTS, chunk=chunk, temperature=temperature)
        return 3.0 * sums.loss, sums  # a factor, so that the cotangent matters

    with jax.numpy_dtype_promotion("strict"):
        gradient, sums = jax.grad(loss, has_aux=True)(jnp.asarray(HIDDEN))
    *expected, expected_gradient = naive(HIDDEN, targets, temperature)
    np.testing.assert_allclose(
        (sums.loss, sums.entropy, sums.correct, sums.weight), expected, rtol=1e-5, atol=1e-6
    )
    np.testing.assert_allclose(gradient, 3.0 * expected_gradient, atol=1e-5)


@pytest.mark.parametrize("targets", [IDS, TEACHER], ids=["ids", "teacher"])
def test_each_position_has_its_own_loss_and_pulls_by_its_own_cotangent(targets):
    """A loss that is not linear in the positions' nats; 5 chunks of M, the last one padded."""

    def loss(hidden):
        each = token_losses(hidden, TABLE, targets, chunk=6, temperature=1.5)
        return jnp.sum(WEIGHTS * each.nats**2), each

    def whole(hidden):
        log_q = jax.nn.log_softmax(hidden @ TABLE.T / 1.5)
        p = (
            jax.nn.one_hot(targets, V)
            if targets.ndim == 2
            else jax.nn.softmax(targets @ TABLE.T / 1.5)
        )
        nats = -jnp.sum(p * log_q, axis=-1)
        return jnp.sum(WEIGHTS * nats**2), (nats, p.argmax(-1) == log_q.argmax(-1))

    gradient, each = jax.grad(loss, has_aux=True)(jnp.asarray(HIDDEN))
    expected_gradient, (nats, correct) = jax.grad(whole, has_aux=True)(jnp.asarray(HIDDEN))
    np.testing.assert_allclose(each.nats, nats, rtol=1e-5)
    np.testing.assert_array_equal(each.correct, correct)
    np.testing.assert_allclose(
        gradient, expected_gradient, atol=1e-5 * np.abs(expected_gradient).max()
    )


def test_without_a_gradient_the_sums_are_the_same():
    sums = cross_entropy(jnp.asarray(HIDDEN), TABLE, IDS, WEIGHTS, chunk=6)
    np.testing.assert_allclose(
        (sums.loss, sums.entropy, sums.correct, sums.weight), naive(HIDDEN, IDS, 1.0)[:4], rtol=1e-5
    )


def test_positions_of_weight_zero_leave_no_trace():
    wild = np.where(WEIGHTS[..., None] > 0, HIDDEN, 1e4).astype(np.float32)

    def loss(hidden, ids):
        sums = cross_entropy(hidden, TABLE, ids, WEIGHTS, chunk=6)
        return sums.loss, sums

    (clean, clean_sums), (other, other_sums) = (
        jax.grad(loss, has_aux=True)(jnp.asarray(h), ids)
        for h, ids in ((HIDDEN, IDS), (wild, np.where(WEIGHTS > 0, IDS, 0)))
    )
    assert (WEIGHTS == 0).sum() > 3 and not np.asarray(clean)[WEIGHTS == 0].any()
    np.testing.assert_array_equal(other, clean)
    np.testing.assert_array_equal(jax.tree.leaves(other_sums), jax.tree.leaves(clean_sums))


@pytest.mark.parametrize("targets", [IDS, TEACHER], ids=["ids", "teacher"])
def test_bfloat16_hidden_states_have_float32_sums(targets):
    hidden = jnp.asarray(HIDDEN, jnp.bfloat16)
    targets = targets if targets.ndim == 2 else jnp.asarray(targets, jnp.bfloat16)

    def loss(hidden):
        sums = cross_entropy(hidden, jnp.asarray(TABLE, jnp.bfloat16), targets, WEIGHTS, chunk=6)
        return sums.loss / 3.0, sums  # 1/3 is no bfloat16

    with jax.numpy_dtype_promotion("strict"):
        gradient, sums = jax.grad(loss, has_aux=True)(hidden)
    assert {leaf.dtype for leaf in jax.tree.leaves(sums)} == {
        jnp.dtype("float32")
    } and gradient.dtype == jnp.bfloat16
    rounded = [np.asarray(x, np.float32) for x in (hidden, targets)]
    rounded[1] = targets if targets.ndim == 2 else rounded[1]
    *expected, expected_gradient = naive(*rounded, 1.0)
    np.testing.assert_allclose((sums.loss, sums.entropy), expected[:2], rtol=5e-3)
    gradient = np.asarray(gradient, np.float64)
    np.testing.assert_allclose(
        gradient, expected_gradient / 3, atol=0.02 * np.abs(expected_gradient).max()
    )
    # each element is rounded, but the whole is not scaled: a cotangent rounded to bfloat16 alone moves it by 1e-3
    assert (gradient * expected_gradient).sum() / (expected_gradient**2).sum() * 3 == pytest.approx(
        1.0, abs=4e-3
    )


def test_the_cotangent_is_not_rounded():
    """A bfloat16 gradient of ones times a float32 factor is the factor, rounded once and not twice."""
    hidden, table = (
        jnp.zeros((1, 1, 2), jnp.bfloat16),
        jnp.array([[0.0, 0.0], [2.0, 3.0]], jnp.bfloat16),
    )
    ids, weights = jnp.zeros((1, 1), jnp.int32), jnp.ones((1, 1))
    factor = (
        1 + 2**-8 + 2**-10
    )  # to bfloat16 1 + 2**-7; times 1.5 it is 1.5073, whose nearest is 1.5078
    gradient = jax.grad(lambda h: factor * cross_entropy(h, table, ids, weights).loss)(hidden)
    np.testing.assert_array_equal(
        gradient[0, 0], np.array([factor, 1.5 * factor]).astype(jnp.bfloat16)
    )


def test_neither_table_nor_teacher_nor_weights_learn():
    def loss(table, teacher, weights):
        return cross_entropy(jnp.asarray(HIDDEN), table, teacher, weights).loss

    for gradient in jax.grad(loss, argnums=(0, 1, 2))(
        jnp.asarray(TABLE), jnp.asarray(TEACHER), jnp.asarray(WEIGHTS)
    ):
        assert not gradient.any()


def test_a_model_that_is_its_own_teacher_has_no_divergence():
    sums = cross_entropy(jnp.asarray(HIDDEN), TABLE, HIDDEN, WEIGHTS)
    assert float(sums.loss - sums.entropy) == pytest.approx(0.0, abs=1e-5)
    assert float(sums.correct) == pytest.approx(float(sums.weight))
    gradient = jax.grad(lambda h: cross_entropy(h, TABLE, HIDDEN, WEIGHTS).loss)(
        jnp.asarray(HIDDEN)
    )
    np.testing.assert_allclose(gradient, 0.0, atol=1e-6)


def _temp_bytes(b, m, d, v, chunk, *, teacher, mesh=None):
    f32 = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.float32)
    targets = f32(b, m, d) if teacher else jax.ShapeDtypeStruct((b, m), jnp.int32)
    step = jax.jit(
        jax.value_and_grad(lambda h, t, y, w: cross_entropy(h, t, y, w, chunk=chunk).loss)
    )
    compiled = step.lower(f32(b, m, d), f32(v, d), targets, f32(b, m)).compile()
    return compiled.memory_analysis().temp_size_in_bytes


@pytest.mark.parametrize("teacher", [False, True])
def test_whole_logits_are_never_built(teacher):
    b, m, d, v, chunk = 4, 64, 8, 4096, 16
    all_logits = b * m * v * 4
    assert _temp_bytes(b, m, d, v, chunk, teacher=teacher) < 0.5 * all_logits
    naive = jax.jit(jax.value_and_grad(lambda h, t: jnp.sum(jax.nn.log_softmax(h @ t.T)[..., 0])))
    lowered = naive.lower(
        jax.ShapeDtypeStruct((b, m, d), jnp.float32), jax.ShapeDtypeStruct((v, d), jnp.float32)
    )
    assert (
        lowered.compile().memory_analysis().temp_size_in_bytes > all_logits
    )  # the measure sees them when they are there


def test_the_chunk_is_counted_on_each_part_of_the_batch():
    """Four devices take four times the positions at once, so the table is read a fourth as often."""

    def n_chunks(mesh):
        with jax.set_mesh(mesh):
            lowered = jax.jit(
                lambda h: (
                    cross_entropy(
                        h, TABLE, np.zeros((8, 16), np.int32), np.ones((8, 16)), chunk=8
                    ).loss
                )
            )
            scans = [
                e
                for e in _equations(lowered.trace(jnp.ones((8, 16, D))).jaxpr.jaxpr)
                if e.primitive.name == "scan"
            ]
        blocks, chunks = (scan.params["length"] for scan in scans)
        assert blocks == 1  # 50 rows are no multiple of 64
        return chunks

    assert n_chunks(make_mesh(MeshShape(), jax.devices()[:1])) == 16
    assert n_chunks(make_mesh(MeshShape(2, 2, 1), jax.devices())) == 4


def _equations(jaxpr):
    for equation in jaxpr.eqns:
        yield equation
        for inner in jax.extend.core.jaxprs_in_params(equation.params):
            yield from _equations(inner)


@pytest.mark.parametrize(
    "shape",
    [MeshShape(2, 2, 1), MeshShape(1, 4, 1), MeshShape(1, 2, 2), MeshShape(1, 1, 4)],
    ids=str,
)
@pytest.mark.parametrize("teacher", [False, True], ids=["ids", "teacher"])
def test_a_sharded_table_gives_the_same_and_is_gathered_once(shape, teacher):
    """4 chunks and, against ids, 4 blocks of the vocabulary; what each device receives of the table is the table, once."""
    b, m, d, v = 8, 16, 32, 256
    rng = np.random.default_rng(1)
    normal = lambda *shape: rng.standard_normal(shape).astype(np.float32)
    hidden, table, weights = normal(b, m, d), normal(v, d), rng.random((b, m)).astype(np.float32)
    targets = normal(b, m, d) if teacher else rng.integers(0, v, (b, m)).astype(np.int32)

    def lowered(mesh):
        axes = dict(zip(("data", "fsdp", "tensor"), (shape.data, shape.fsdp, shape.tensor)))
        lie = lambda x, *spec: jax.device_put(x, NamedSharding(mesh, PartitionSpec(*spec)))
        batch, chunk = (
            ("data", "fsdp"),
            b * m // 4 // (axes["data"] * axes["fsdp"] if mesh.size > 1 else 1),
        )
        arguments = (
            lie(hidden, batch),
            lie(table, "tensor", "fsdp"),
            lie(targets, batch),
            lie(weights, batch),
        )

        def loss(h, t, y, w):
            sums = cross_entropy(h, t, y, w, chunk=chunk)
            return sums.loss, sums

        with jax.set_mesh(mesh):
            compiled = jax.jit(jax.value_and_grad(loss, has_aux=True)).lower(*arguments).compile()
            return compiled(*arguments), compiled.as_text()

    (found, gradient), text = lowered(make_mesh(shape, jax.devices()))
    (expected, expected_gradient), _ = lowered(make_mesh(MeshShape(), jax.devices()[:1]))
    np.testing.assert_allclose(jax.tree.leaves(found), jax.tree.leaves(expected), rtol=1e-5)
    np.testing.assert_allclose(
        gradient, expected_gradient, atol=1e-5 * np.abs(expected_gradient).max()
    )
    of_table = gathered_elements(text, d)
    assert of_table == (v // shape.tensor * d if shape.fsdp > 1 else 0)


def gathered_elements(text, d, name="", times=1):
    """Returns how many elements the all-gathers of arrays [.., d] give, those in loops as often as they run."""
    bodies = dict(
        re.findall(r"^(?:ENTRY )?%?([\w.-]+) \([^\n]*\{\n(.*?)^\}", text, re.MULTILINE | re.DOTALL)
    )
    total = 0
    for line in bodies[
        name or re.search(r"^ENTRY %?([\w.-]+)", text, re.MULTILINE)[1]
    ].splitlines():
        if found := re.search(r"= \w+\[([\d,]+)\]\S* all-gather(?:-start)?\(", line):
            sizes = [int(n) for n in found[1].split(",")]
            total += times * np.prod(sizes) * (sizes[-1] == d)
        if " while(" in line:
            inner, n = (
                re.search(r"body=%?([\w.-]+)", line)[1],
                re.search(r'known_trip_count":\{"n":"(\d+)"', line)[1],
            )
            total += gathered_elements(text, d, inner, times * int(n))
    return total


def test_gather_takes_each_rows_own_positions():
    x = np.arange(2 * 5 * 3.0).reshape(2, 5, 3)
    positions = np.array([[4, 0], [1, 1]], np.int32)
    np.testing.assert_array_equal(
        gather_positions(jnp.asarray(x), jnp.asarray(positions)), [x[0, [4, 0]], x[1, [1, 1]]]
    )
