"""Rows of the embedding that mean no text are never written, by greedy choice or by sampling, however likely they look."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medkor_jax.data.language import token_languages
from medkor_jax.eval.scorer import ModelScorer
from medkor_jax.io.loaded_model import LoadedModel
from medkor_jax.io.models import open_model
from medkor_jax.model.params import Params
from medkor_jax.parallel.mesh import MeshShape, make_mesh
from medkor_jax.train.actor import Actor
from medkor_jax.train.compute import ComputeSettings
from medkor_jax.train.stage import Stage
from medkor_jax.train.step import step_spec


@pytest.fixture(scope="module")
def loud(tiny_base_dir):
    """A model whose loudest rows are those beyond its vocabulary, then <pad> and <bos>: what it would always say."""
    model = open_model(tiny_base_dir)
    base, tokenizer = model.base.load(jnp.float32), model.tokenizer
    assert tokenizer.vocab_size < model.config.vocab_size
    silent = [
        tokenizer.pad_id,
        tokenizer.bos_id,
        *range(tokenizer.vocab_size, model.config.vocab_size),
    ]
    rows = base["embed"].at[jnp.array(silent)].multiply(30.0)
    config = dataclasses.replace(model.config, tied_head=False)
    return Params(base | {"head": rows}), config, tokenizer, set(silent)


@pytest.mark.parametrize("language_unit", ["token", "document"])
def test_greedy_text_holds_none(loud, language_unit):
    params, config, tokenizer, silent = loud
    scorer = ModelScorer(
        LoadedModel(params, None, config, tokenizer, language_unit=language_unit),
        dtype=jnp.float32,
        batch_size=4,
    )
    prompts = [
        [tokenizer.bos_id, *tokenizer.encode(text)]
        for text in ("Answer:", "정답：", "열 37.5도", "a b c")
    ]
    written = scorer.decoder.generate(
        params, prompts, max_new_tokens=12, languages=scorer.languages_of(prompts)
    )
    assert all(one.tokens and not silent & set(one.tokens) for one in written)


@pytest.mark.parametrize("language_unit", ["token", "document"])
def test_samples_hold_none(loud, language_unit):
    params, config, tokenizer, silent = loud
    mesh = make_mesh(MeshShape(data=1), jax.devices()[:1])
    loaded = LoadedModel(params, None, config, tokenizer, language_unit=language_unit)
    spec = step_spec(Stage(), ComputeSettings("float32", "none"))
    actor = Actor(loaded, spec, mesh, temperature=1.5, max_new_tokens=12)
    prompt = [tokenizer.bos_id, *tokenizer.encode("Answer:")]
    with jax.set_mesh(mesh):
        samples = actor.sample(params, [prompt] * 8, list(range(8)), [0] * 8)
    assert all(one.tokens and not silent & set(one.tokens) for one in samples)


def test_a_row_beyond_the_vocabulary_has_a_language(loud):
    *_, tokenizer, _ = loud
    assert token_languages(np.array([tokenizer.vocab_size + 3, 5]), tokenizer)[0] == 0
