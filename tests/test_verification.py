"""A model against transformers: its logits, and its greedy text with the cache, by full passes and over there."""

import dataclasses
import types

import pytest

from medkor_jax.io.export import export_hf
from medkor_jax.io.models import open_model
from medkor_jax.verification import NEW_TOKENS, greedy_prompts, verify

pytest.importorskip("torch")
pytest.importorskip("transformers")


def test_an_export_is_compared_with_itself_and_with_its_run(save_adapted, tmp_path):
    run, out = save_adapted(lora=True, lang="vector", front=2, back=1), tmp_path / "out"
    export_hf(run, out)
    for weights, export in ((out, ""), (run.directory, str(out))):
        result = verify(str(weights), export=export)
        assert result.passed and len(result.comparisons) == 4
    with pytest.raises(ValueError, match="give --export"):
        verify(str(run.directory))


def test_verify_writes_the_same_greedy_text_with_the_cache_by_full_passes_and_in_transformers(save_adapted, tmp_path):
    # No language embeddings: this vocabulary spells signs of the questions in bytes, whose fold is not exact.
    model = save_adapted(lora=True, front=1, back=1)
    export_hf(model, tmp_path / "out")
    result = verify(str(model.directory), export=str(tmp_path / "out"), n_greedy=18)
    assert result.passed and [g.n_prompts for g in result.greedy] == [18, 18]
    assert all(g.n_same == 18 and g.regret == 0 for g in result.greedy)


def test_verify_fails_on_greedy_text_of_other_weights(save_adapted, tmp_path):
    model, other = save_adapted(lora=True, front=1), save_adapted(front=1)
    export_hf(other, tmp_path / "out")
    result = verify(str(model.directory), export=str(tmp_path / "out"), n_greedy=2)
    cached, reference = result.greedy
    assert not result.passed and cached.regret == 0 and reference.regret > 2 * result.bound


def test_greedy_prompts_are_in_both_languages_and_some_pass_the_window(tiny_base_dir):
    tiny = open_model(tiny_base_dir)
    window = 1024  # wider than any question, as of real models
    config = dataclasses.replace(tiny.config, sliding_window=window, max_positions=4 * window)
    model = types.SimpleNamespace(tokenizer=tiny.tokenizer, config=config)
    prompts = greedy_prompts(model, 41)
    assert {prompt[0] for prompt in prompts} == {model.tokenizer.bos_id}
    assert [i for i, prompt in enumerate(prompts) if len(prompt) > window] == [0, 20, 40]
    assert max(map(len, prompts)) + NEW_TOKENS <= config.max_positions
    for n in (-1, 100_000):
        with pytest.raises(ValueError, match=f"{n} greedy prompts are asked for"):
            greedy_prompts(model, n)
