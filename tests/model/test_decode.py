import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medkor_jax.adapt.expansion import make_expansion
from medkor_jax.model import decode
from medkor_jax.model.cache import grow
from medkor_jax.model.cached_forward import read_prompt, read_token
from medkor_jax.model.completion import LENGTH, STOP_STRING, STOP_TOKEN
from medkor_jax.model.config import GLOBAL, LOCAL, preset
from medkor_jax.model.decode import Decoder, n_compilations
from medkor_jax.model.forward import Inputs, forward, project_logits
from medkor_jax.model.params import Params, abstract_base
from medkor_jax.model.prompts import Routing, bucket, pad_prompts
from medkor_jax.model.sampling import Sampling, choose_tokens, restrict
from medkor_jax.parallel.mesh import MeshShape, make_mesh, shard_tree

C = preset("tiny")
ROOM = 32  # new tokens before the cache grows
NEW = 60  # with the prompts below, every local ring (window 16) goes round several times, and the cache grows


@pytest.fixture(scope="module")
def params(make_base, make_adapters):
    """Random weights with adapters and language embeddings; blocks outweigh the input, so that tokens vary."""
    base = make_base(C)
    base["layers"] |= {
        name: base["layers"][name] + 3.0 for name in ("post_attn_norm", "post_ffw_norm")
    }
    lang = {"vector": np.random.default_rng(5).standard_normal((2, C.d_model)).astype(np.float32)}
    return Params(base, lora=make_adapters(base), lang=lang, lora_scale=0.5)


@pytest.fixture(scope="module")
def prompts():
    rng = np.random.default_rng(0)
    return [rng.integers(0, C.vocab_size, n).tolist() for n in (3, 17, 40, 16, 1, 33)]


@pytest.fixture(scope="module")
def greedy(params, prompts):
    return Decoder(C, dtype=jnp.float32, room=ROOM).generate(params, prompts, max_new_tokens=NEW)


@jax.jit
def full_logits(params, tokens, langs):
    """Returns [B, T, V] of one pass over rows padded on the right."""
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
    inputs = Inputs(tokens, positions, jnp.ones_like(tokens), langs)
    return project_logits(params.base, forward(params, C, inputs, dtype=jnp.float32))


def assert_greedy(params, prompts, completions, routing, starts):
    """Holds if each token is the best one of a full pass over everything before it (a pass is causal: one will do)."""
    rows = [list(p) + list(c.tokens) for p, c in zip(prompts, completions, strict=True)]
    padded = pad_prompts(rows, routing, languages=starts)
    best = np.asarray(full_logits(params, padded.tokens, padded.langs).argmax(-1))
    for b, (prompt, row) in enumerate(zip(prompts, rows)):
        assert row[len(prompt) :] == best[b, len(prompt) - 1 : len(row) - 1].tolist()


def test_greedy_tokens_are_those_of_the_full_pass(params, prompts, greedy):
    assert [len(c.tokens) for c in greedy] == [NEW] * len(prompts) and {
        c.finish for c in greedy
    } == {LENGTH}
    assert min(len(set(c.tokens)) for c in greedy) > 5, (
        "rows that repeat one token would prove little"
    )
    assert_greedy(params, prompts, greedy, Routing.constant(C.vocab_size), [0] * len(prompts))


def test_an_expanded_model_decodes_like_its_full_pass(params, prompts, greedy, make_blocks):
    """On one device and on four; fresh identities decode like the model without them."""
    decoder = Decoder(C, dtype=jnp.float32, room=ROOM)
    expanded = params.replace(expand=make_blocks(params.base, front=2, back=1))
    found = decoder.generate(expanded, prompts, max_new_tokens=NEW)
    assert min(len(set(c.tokens)) for c in found) > 5 and found != greedy
    assert_greedy(expanded, prompts, found, Routing.constant(C.vocab_size), [0] * len(prompts))
    fresh = params.replace(expand=make_expansion(params.base, front=2, back=1))
    assert decoder.generate(fresh, prompts, max_new_tokens=NEW) == greedy
    spread_out = on_four(
        expanded, MeshShape(data=1, fsdp=2, tensor=2), decoder, prompts, max_new_tokens=20
    )
    assert [row.tokens for row in spread_out] == [row.tokens[:20] for row in found]


MIXED = (LOCAL, GLOBAL, GLOBAL, LOCAL, LOCAL, LOCAL, GLOBAL)


@pytest.mark.parametrize(
    ("kinds", "front", "back"),
    [
        (C.layer_kinds, 0, 0),
        (MIXED, 0, 0),
        ((LOCAL,) * 7, 0, 0),
        (C.layer_kinds, 1, 0),
        (MIXED, 2, 1),
        (MIXED[::-1], 1, 2),
    ],
)
def test_cached_logits_equal_the_full_pass(params, prompts, make_blocks, kinds, front, back):
    """Any tokens, not only greedy ones; rings grow in the middle, from 64 to 96 slots."""
    config = dataclasses.replace(C, layer_kinds=kinds)
    if front or back:
        params = params.replace(expand=make_blocks(params.base, front, back))
    tokens = np.random.default_rng(1).integers(0, C.vocab_size, (len(prompts), 50)).astype(np.int32)
    langs = tokens % 2
    rows = [p + t.tolist() for p, t in zip(prompts, tokens)]
    padded = pad_prompts(rows, Routing.constant(C.vocab_size))
    padded_langs = padded.tokens % 2
    positions = np.broadcast_to(
        np.arange(padded.tokens.shape[1], dtype=np.int32), padded.tokens.shape
    )
    inputs = Inputs(padded.tokens, positions, np.ones_like(positions), padded_langs)
    expected = jax.jit(
        lambda p, i: project_logits(p.base, forward(p, config, i, dtype=jnp.float32))
    )(params, inputs)

    prompt = pad_prompts(prompts, Routing.constant(C.vocab_size))
    n, extra = len(prompts), len(prompt.lengths) - len(prompts)
    read = jax.jit(
        lambda p, x: read_prompt(
            p, config, x.tokens, x.lengths, x.tokens % 2, size=64, dtype=jnp.float32
        )
    )
    step = jax.jit(lambda p, c, *x: read_token(p, config, c, *x, dtype=jnp.float32))
    hidden, cache = read(params, prompt)
    worst = 0.0
    for t in range(50):
        got = project_logits(params.base, hidden)[:n]
        want = expected[np.arange(n), prompt.lengths[:n] + t - 1]
        worst = max(worst, float(jnp.abs(got - want).max()))
        if t == 23:
            cache = grow(cache, config, size=96)
        pad = lambda x: np.pad(x[:, t], (0, extra))
        hidden, cache = step(params, cache, pad(tokens), prompt.lengths + t, pad(langs))
    assert float(jnp.abs(expected).max()) > 3.0
    assert worst < 1e-4


def test_a_row_does_not_depend_on_its_batch(params, prompts, greedy):
    """Alone, the shortest prompt has another length bucket, batch bucket and size of ring."""
    assert (
        Decoder(C, dtype=jnp.float32, room=ROOM).generate(params, prompts[:1], max_new_tokens=NEW)
        == greedy[:1]
    )


SAMPLED = Decoder(
    C, dtype=jnp.float32, room=ROOM, sampling=Sampling(temperature=1.0, top_k=40, top_p=0.95)
)


@pytest.fixture(scope="module")
def sampled(params, prompts):
    """The first two rows have one prompt, the first and the last one seed."""
    return SAMPLED.generate(
        params, prompts[1:2] + prompts[1:], max_new_tokens=20, seeds=[7, 8, 9, 10, 11, 7]
    )


def test_a_sample_depends_on_its_seed_and_on_nothing_else(params, prompts, sampled):
    alone = SAMPLED.generate(params, prompts[1:2], max_new_tokens=20, seeds=[8])
    assert alone[0] == sampled[1] != sampled[0]
    assert (
        SAMPLED.generate(params, prompts[::-1], max_new_tokens=20, seeds=[7, 1, 2, 3, 8, 4])[4]
        == sampled[1]
    )


def on_four(params, shape, decoder, *args, **options):
    mesh = make_mesh(shape, jax.devices()[:4])
    with jax.set_mesh(mesh):
        return decoder.generate(jax.device_put(params, shard_tree(params, mesh)), *args, **options)


def test_four_devices_equal_one(params, prompts, greedy, sampled):
    """Six rows on four devices: rows are added until they divide."""
    shape = MeshShape(data=1, fsdp=2, tensor=2)
    found = on_four(
        params, shape, Decoder(C, dtype=jnp.float32, room=ROOM), prompts, max_new_tokens=20
    )
    assert [row.tokens for row in found] == [row.tokens[:20] for row in greedy]
    rows = prompts[1:2] + prompts[1:]
    assert (
        on_four(
            params, MeshShape(data=4), SAMPLED, rows, max_new_tokens=20, seeds=[7, 8, 9, 10, 11, 7]
        )
        == sampled
    )


# A vocabulary with characters of two tokens: class 1 opens one, class 2 ends it and makes both of language 1.
_CLASSES = (np.arange(C.vocab_size, dtype=np.int32) * 7 // 3) % 3


@dataclasses.dataclass
class _Automaton:
    token_class: np.ndarray
    next_state: np.ndarray
    language: np.ndarray


def test_generated_tokens_get_their_language_from_the_automaton(params, prompts, greedy):
    automaton = _Automaton(
        _CLASSES[:500], np.array([[0, 1, 0], [0, 1, 0]]), np.array([[0, 0, 0], [0, 0, 1]])
    )
    routing = Routing.by_token(automaton, C.vocab_size)
    found = Decoder(C, dtype=jnp.float32, room=ROOM, routing=routing).generate(
        params, prompts, max_new_tokens=NEW
    )
    langs = np.concatenate([routing.walk(c.tokens, 0)[0] for c in found])
    assert 0 < langs.mean() < 1 and found != greedy
    assert_greedy(params, prompts, found, routing, None)


def test_a_constant_language_is_carried_on(params, prompts, greedy):
    languages = [0, 1, 1, 0, 1, 1]
    found = Decoder(C, dtype=jnp.float32, room=ROOM).generate(
        params, prompts, max_new_tokens=NEW, languages=languages
    )
    assert found[0] == greedy[0] and found[1] != greedy[1]
    assert_greedy(params, prompts, found, Routing.constant(C.vocab_size), languages)


def test_stop_tokens_end_a_row_and_are_its_last_token(params, prompts, greedy):
    stop_id = greedy[1].tokens[20]
    found = Decoder(C, dtype=jnp.float32, room=ROOM, stop_ids=(stop_id, 511)).generate(
        params, prompts, max_new_tokens=NEW
    )
    for row, whole in zip(found, greedy):
        ends = [i for i, token in enumerate(whole.tokens) if token in (stop_id, 511)]
        assert row.tokens == (whole.tokens[: ends[0] + 1] if ends else whole.tokens)
        assert row.finish == (STOP_TOKEN if ends else LENGTH)
    assert found[1].finish == STOP_TOKEN


def spell(ids):
    """Three characters a token, unlike those of any other."""
    return "".join(f"{i:03d}" for i in ids)


def test_stop_strings_are_found_across_tokens_and_cut_off(params, prompts, greedy):
    text = spell(greedy[2].tokens)
    stop = (text[31:38], "never", text[40:50])  # from inside token 10 to inside token 12
    at = text.find(stop[0])
    found = Decoder(C, dtype=jnp.float32, room=ROOM, decode=spell).generate(
        params, prompts, max_new_tokens=30, stop=stop
    )
    assert (found[2].text, found[2].finish) == (text[:at], STOP_STRING)
    assert found[2].tokens == greedy[2].tokens[: -(-(at + len(stop[0])) // 3)]
    for row, whole in zip(
        found[:2], greedy
    ):  # no stop string in them, and a neighbour's end is none of their business
        assert (row.tokens, row.text, row.finish) == (
            whole.tokens[:30],
            spell(whole.tokens[:30]),
            LENGTH,
        )


def test_one_compilation_a_bucket(params):
    config = dataclasses.replace(
        C, rope_base_local=9_999.0
    )  # a config of its own: nothing is compiled for it yet
    decoder = Decoder(config, dtype=jnp.float32, room=ROOM, decode=spell)
    rng = np.random.default_rng(3)

    def compiled_by(lengths, **options):
        before = n_compilations()
        rows = [rng.integers(0, C.vocab_size, n).tolist() for n in lengths]
        decoder.generate(params, rows, **{"max_new_tokens": 20} | options)
        return {name: n - before[name] for name, n in n_compilations().items()}

    assert compiled_by([3, 9, 30]) == {"start": 1, "continue": 1, "grow": 0}
    assert compiled_by([32, 1, 2, 5]) == {"start": 0, "continue": 0, "grow": 0}
    assert compiled_by([20, 8, 7], max_new_tokens=29, stop=("x",)) == {
        "start": 0,
        "continue": 0,
        "grow": 0,
    }
    assert compiled_by([33, 8, 7]) == {"start": 1, "continue": 1, "grow": 0}
    # From 64 slots to 96, for which the loop is compiled already.
    assert compiled_by([30, 8, 7], max_new_tokens=40) == {"start": 0, "continue": 0, "grow": 1}


def test_buckets_are_at_most_half_padding():
    assert [bucket(n) for n in (1, 32, 33, 49, 65, 97, 1025, 1537)] == [
        32,
        32,
        48,
        64,
        96,
        128,
        1536,
        2048,
    ]


@pytest.mark.parametrize("with_nats", [False, True])
@pytest.mark.parametrize("is_expanded", [False, True])
def test_the_cache_is_updated_in_place(is_expanded, with_nats):
    """A scan over the cache as inputs and outputs, or a branch around its update, would need a second one."""
    config = dataclasses.replace(C, layer_kinds=(GLOBAL,) * 12)
    params = Params(abstract_base(config, jnp.float32))
    if is_expanded:
        params = params.replace(expand=jax.eval_shape(make_expansion, params.base))
    prompt = jax.eval_shape(
        lambda: jax.tree.map(
            jnp.asarray, pad_prompts([[1] * 30] * 8, Routing.constant(C.vocab_size))
        )
    )
    settings = decode.Settings(config, jnp.dtype("float32"), Sampling(), (), 8, with_nats)
    routing = Routing.constant(C.vocab_size)
    state, *_ = jax.eval_shape(
        lambda p, x: decode._start(p, x, routing, settings=settings, size=1024), params, prompt
    )
    is_done, n_steps = jax.ShapeDtypeStruct((8,), bool), jax.ShapeDtypeStruct((), jnp.int32)
    memory = (
        decode._continue.lower(params, state, routing, is_done, n_steps, settings=settings)
        .compile()
        .memory_analysis()
    )
    cache_bytes = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state.cache))
    assert memory.alias_size_in_bytes >= cache_bytes
    assert memory.temp_size_in_bytes < cache_bytes / 4  # one layer's slice is 1/12, keys and values


def kept_by_sorting(logits, sampling):
    """Returns which tokens a row keeps, by the definition: sort, count, accumulate."""
    order = np.argsort(-logits, kind="stable")
    n = sampling.top_k or len(order)
    kept = order[:n]
    weights = np.exp((logits[kept] - logits[kept[0]]) / sampling.temperature)
    before = np.cumsum(weights / weights.sum()) - weights / weights.sum()
    return set(kept[(before < sampling.top_p) | (sampling.top_p == 1.0)].tolist())


@pytest.mark.parametrize(
    "top_k, top_p", [(1, 1.0), (5, 1.0), (0, 0.5), (0, 0.999), (20, 0.8), (0, 1e-6), (10_000, 1.0)]
)
def test_top_k_and_top_p_keep_what_sorting_keeps(top_k, top_p):
    logits = np.random.default_rng(0).standard_normal((6, 1000)).astype(np.float32) * 4
    logits[0] *= 20  # some probabilities are zero in float32
    logits[1] = -np.abs(logits[1])
    sampling = Sampling(temperature=0.7, top_k=top_k, top_p=top_p)
    restricted = np.asarray(restrict(jnp.asarray(logits), sampling))
    for row, got in zip(logits, restricted):
        assert set(np.flatnonzero(np.isfinite(got)).tolist()) == kept_by_sorting(row, sampling)
        np.testing.assert_allclose(got[np.isfinite(got)], row[np.isfinite(got)] / 0.7, rtol=1e-6)


@pytest.mark.parametrize("top_k, top_p", [(3, 1.0), (50, 1.0), (0, 0.6), (40, 0.9)])
def test_a_few_blocks_of_a_large_vocabulary_keep_what_sorting_keeps(top_k, top_p):
    """600 blocks: of peaked rows a part is searched; where one row is flat, everything is."""
    logits = np.random.default_rng(1).standard_normal((4, 600 * 64 - 7)).astype(np.float32) * 6
    for given in (logits, np.concatenate([logits, logits[:1] / 100])):
        restricted = np.asarray(
            jax.jit(lambda x: restrict(x, Sampling(0.7, top_k, top_p)))(jnp.asarray(given))
        )
        for row, got in zip(given, restricted):
            kept, wanted = (
                set(np.flatnonzero(np.isfinite(got)).tolist()),
                kept_by_sorting(row.astype(np.float64), Sampling(0.7, top_k, top_p)),
            )
            assert len(kept ^ wanted) <= (3 if len(wanted) > 5000 else 0), (
                "float32 sums of thousands of equal shares end a token apart"
            )


def test_ties_in_blocks_that_are_not_searched_are_kept():
    logits = np.zeros((1, 300 * 64), np.float32)
    logits[0, ::64] = 1.0  # every block's best
    kept = np.isfinite(np.asarray(restrict(jnp.asarray(logits), Sampling(1.0, top_k=5))))[0]
    assert kept.sum() == 300 and kept[::64].all()


def test_tokens_that_tie_with_the_last_one_kept_are_kept():
    logits = jnp.array([[1.0, 3.0, 2.0, 2.0, 2.0, 0.0]])
    assert np.isfinite(restrict(logits, Sampling(1.0, top_k=2)))[0].tolist() == [
        False,
        True,
        True,
        True,
        True,
        False,
    ]


def test_greedy_takes_the_first_of_the_best():
    logits = (
        np.random.default_rng(0).integers(0, 5, (6, 130)).astype(np.float32)
    )  # many ties, within blocks and across
    logits[0] = -np.inf
    logits[1, -1] = 9
    found = choose_tokens(jnp.asarray(logits), Sampling(), jnp.zeros(6, jnp.uint32), jnp.int32(0))
    assert found.tolist() == logits.argmax(-1).tolist()


def test_draws_follow_the_distribution():
    """130 tokens: blocks that are not whole. Each count lies within five standard deviations."""
    n = 8_000
    logits = np.random.default_rng(0).standard_normal(130).astype(np.float32) / 2
    logits[[3, 64, 129]] = -np.inf
    draw = jax.jit(
        lambda step: choose_tokens(
            jnp.tile(logits, (n, 1)), Sampling(0.5), jnp.arange(n, dtype=jnp.uint32), step
        )
    )
    drawn = draw(4)
    counts = np.bincount(np.asarray(drawn), minlength=130)
    p = np.exp(2 * logits.astype(np.float64))
    p /= p.sum()
    assert len(counts) == 130 and counts[[3, 64, 129]].sum() == 0
    assert (np.abs(counts - n * p) <= 5 * np.sqrt(n * p * (1 - p)) + 1).all()
    assert (draw(5) != drawn).mean() > 0.5, "another step draws again"


@pytest.mark.parametrize(
    "message, settings, arguments",
    [
        ("at least one token", {}, {"prompts": [[1], []]}),
        ("at least 1", {}, {"max_new_tokens": 0}),
        ("room is 0", {"room": 0}, {}),
        ("1024 positions", {}, {"prompts": [[1] * 1000], "max_new_tokens": 25}),
        ("0 to 511", {}, {"prompts": [[512]]}),
        ("decode=tokenizer.decode", {}, {"stop": (".",)}),
        ("empty stop string", {"decode": spell}, {"stop": ("",)}),
        ("needs `seeds`", {"sampling": Sampling(1.0)}, {}),
        ("2 seeds for 1", {"sampling": Sampling(1.0)}, {"seeds": [1, 2]}),
        (
            "routing is by token",
            {"routing": Routing(*np.zeros((3, 512, 2), np.int32), np.zeros(512, np.float32))},
            {"languages": [1]},
        ),
    ],
)
def test_what_cannot_be_decoded_is_refused(params, message, settings, arguments):
    with pytest.raises(ValueError, match=message):
        Decoder(C, dtype=jnp.float32, **settings).generate(
            params, **{"prompts": [[1, 2]], "max_new_tokens": 2} | arguments
        )


@pytest.mark.parametrize(
    "wrong",
    [{"temperature": -1.0}, {"top_k": -1}, {"top_p": 0.0}, {"top_p": 1.5}, {"temperature": np.nan}],
)
def test_sampling_without_meaning_is_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Sampling(**wrong)


def test_text_is_told_while_it_grows(params):
    told = []
    decoder = Decoder(
        C,
        dtype=jnp.float32,
        room=ROOM,
        decode=lambda ids: "".join(f"{i} " for i in ids),
        check_every=1,
    )
    (done,) = decoder.generate(
        params, [[2, 5]], max_new_tokens=4, on_text=lambda texts: told.append(*texts)
    )
    assert len(told) == 4 and told[-1] == done.text
    assert all(
        later.startswith(earlier) and later != earlier
        for earlier, later in itertools.pairwise(told)
    )
