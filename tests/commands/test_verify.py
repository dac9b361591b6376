"""A model against transformers: its logits, and its greedy text with the cache, by full passes and over there."""

import dataclasses
import json
import shutil
import types

import jax.numpy as jnp
import pytest

from medkor_jax import cli
from medkor_jax.commands.verification import NEW_TOKENS, ROUNDING_VARIES
from medkor_jax.commands.verify import greedy_prompts, verify
from medkor_jax.io import hf, reference, tokenizer_files
from medkor_jax.io.export import export_hf
from medkor_jax.io.models import open_model, save_model
from medkor_jax.io.rounding import MOST_NOISE
from medkor_jax.parallel.mesh import one_device

pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")


def test_an_export_is_compared_with_itself_and_with_its_run(save_adapted, tmp_path):
    run, out = save_adapted(lora=True, lang="vector", front=2, back=1), tmp_path / "out"
    export_hf(run, out)
    for weights, export in ((out, ""), (run.directory, str(out))):
        result = verify(str(weights), export=export)
        assert result.passed and len(result.comparisons) == 4
    with pytest.raises(ValueError, match="give --export"):
        verify(str(run.directory))


def test_verify_writes_the_same_greedy_text_with_the_cache_by_full_passes_and_in_transformers(
    save_adapted, tmp_path
):
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


TEMPLATE = "{{ bos_token }}{% for m in messages %}<start_of_turn>{{ m['role'] }}\n{{ m['content'] | trim }}<end_of_turn>\n{% endfor %}"


@pytest.fixture
def checkpoint(save_adapted, tmp_path):
    """A checkpoint with a chat template, whose tokenizer is a tokenizer.json that a script's last call left cut and padded."""
    directory = tmp_path / "checkpoint"
    export_hf(save_adapted(), directory)
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    tokenizer.chat_template = TEMPLATE
    tokenizer(["a b c d e f"], truncation=True, max_length=24, padding="max_length")
    tokenizer.save_pretrained(directory)
    (directory / "tokenizer.model").unlink()
    said = json.loads((directory / "tokenizer.json").read_text(encoding="utf-8"))
    assert said["truncation"]["max_length"] == 24 and said["padding"]
    return directory


def test_verify_compares_texts_where_a_file_cuts_and_pads(checkpoint, capsys):
    result = verify(str(checkpoint))
    assert (
        result.passed
        and result.texts.n_texts == result.texts.n_same > 200
        and result.texts.longest > 1000
    )
    assert result.texts.templates == ("default",)
    table = result.table()
    assert (
        "become the same ids" in table
        and "chat templates (default) are the same" in table
        and table.endswith("PASSED: the bound is 0.001")
    )


def test_verify_fails_before_any_logits_on_a_reader_that_obeys_the_file(checkpoint, monkeypatch):
    """As this program's did before it left that state out."""
    read = tokenizer_files.read_tokenizer

    def obeying(directory):
        tokenizer = read(directory)
        tokenizer._engine._tokenizer.enable_truncation(24)
        return tokenizer

    monkeypatch.setattr(hf, "read_tokenizer", obeying)
    monkeypatch.setattr(
        reference, "load_reference", lambda name: pytest.fail("logits are compared")
    )
    result = verify(str(checkpoint))
    table = result.table()
    assert (
        not result.passed
        and result.comparisons == ()
        and "FAILED: texts are read differently" in table
    )
    assert "here 24 ids, from place 24 []" in table and "the first is '" in table
    assert cli.main(["verify", "--weights", str(checkpoint), "--json"]) == 1


@pytest.mark.parametrize("change", ["other words", "none", "one more"])
def test_an_export_s_chat_template_is_compared_with_the_base_s(
    checkpoint, tmp_path, monkeypatch, change
):
    out = tmp_path / "out"
    export_hf(open_model(checkpoint), out)
    monkeypatch.setattr(
        reference, "load_reference", lambda name: pytest.fail("logits are compared")
    )
    if change == "other words":
        (out / "chat_template.jinja").write_text(TEMPLATE.replace("trim", "upper"))
        expected = f"chat template 'default' has {len(TEMPLATE)} characters, in transformers {len(TEMPLATE) + 1}; they part at {TEMPLATE.index('trim')}: 'trim"
    elif change == "none":
        (out / "chat_template.jinja").unlink()
        expected = "the base has default, transformers reads none"
    else:
        (out / "additional_chat_templates").mkdir()
        (out / "additional_chat_templates/rag.jinja").write_text("x")
        expected = "the base has default, transformers reads default, rag"
    result = verify(str(checkpoint), export=str(out))
    assert not result.passed and expected in result.table()


def test_a_template_that_renders_otherwise_over_there_is_found(checkpoint, tmp_path, monkeypatch):
    """The same text, but what it calls bos_token is another token in the export."""
    out = tmp_path / "out"
    export_hf(open_model(checkpoint), out)
    path = out / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"bos_token": "<eos>"}))
    monkeypatch.setattr(
        reference, "load_reference", lambda name: pytest.fail("logits are compared")
    )
    result = verify(str(checkpoint), export=str(out))
    assert (
        not result.passed
        and "chat template 'default' gives '<bos><start_of_turn>user" in result.table()
    )


def test_what_is_put_around_a_text_is_said_of_a_checkpoint_and_fails_an_export(
    checkpoint, tmp_path, monkeypatch
):
    out = tmp_path / "out"
    export_hf(open_model(checkpoint), out)
    for directory in (checkpoint, out):
        path = directory / "tokenizer.json"
        said = json.loads(path.read_text(encoding="utf-8"))
        said["post_processor"]["single"].append({"SpecialToken": {"id": "<bos>", "type_id": 0}})
        path.write_text(json.dumps(said, ensure_ascii=False), encoding="utf-8")
    result = verify(str(checkpoint))
    assert result.passed and "note: a call in transformers makes [2, " in result.table()
    monkeypatch.setattr(
        reference, "load_reference", lambda name: pytest.fail("logits are compared")
    )
    assert not verify(str(checkpoint), export=str(out)).passed


def test_a_bfloat16_export_is_compared_with_itself_and_with_its_run_within_what_rounding_may_take(
    save_adapted, tmp_path
):
    """Weights rounded to bfloat16 are no fault of the export: before, no such export could pass."""
    run, out = save_adapted(lora=True, lang="vector", front=2, back=1), tmp_path / "out"
    export_hf(run, out, dtype="bfloat16")
    result = verify(str(run.directory), export=str(out), n_greedy=4)
    assert result.passed and max(c.largest_difference for c in result.comparisons) <= result.bound
    assert 0 < result.rounded.error <= ROUNDING_VARIES * result.rounded.expected < 0.1 and {
        "LoRA",
        "added layers",
    } <= set(result.rounded.parts)
    assert (
        "the run against its bfloat16 export" in result.table()
        and "theirs in float64" in result.table()
    )


def test_an_export_of_another_model_fails_whatever_its_dtype(save_adapted, tmp_path):
    run, other = save_adapted(lora=True, front=1), save_adapted(lora=True, back=1)
    for dtype in ("float32", "bfloat16"):
        export_hf(other, tmp_path / dtype, dtype=dtype)
        result = verify(str(run.directory), export=str(tmp_path / dtype))
        assert (
            not result.passed and result.is_another and "made from another model" in result.table()
        )


@pytest.mark.parametrize(
    "leaf",
    ["model.layers.3.mlp.down_proj.weight", "model.layers.0.post_attention_layernorm.weight"],
)
def test_a_bfloat16_export_that_lost_a_part_fails(leaf, save_adapted, tmp_path):
    run, out = save_adapted(lora=True, front=1), tmp_path / "out"
    export_hf(run, out, dtype="bfloat16")
    edit_tensor(out / "model.safetensors", leaf, lambda tensor: tensor * 0 + 1)
    result = verify(str(run.directory), export=str(out))
    assert not result.passed and not result.rounded.passed


def test_a_bfloat16_export_without_the_language_embeddings_fails_although_they_are_a_small_part(
    save_adapted, tmp_path
):
    loud, without, out = (
        save_adapted(lora=True, lang="vector"),
        save_adapted(lora=True),
        tmp_path / "out",
    )
    params = loud.load(jnp.float32, one_device())
    run = save_model(
        tmp_path / "run", params.replace(lang={"vector": 0.1 * params.lang["vector"]}), loud.base
    )
    export_hf(run, out, dtype="bfloat16")
    export_hf(without, tmp_path / "without", dtype="bfloat16")
    shutil.copy(tmp_path / "without/model.safetensors", out)  # what is said of it stays
    shutil.copy(tmp_path / "without/config.json", out)
    result = verify(str(run.directory), export=str(out))
    assert (
        result.rounded.error < MOST_NOISE["bfloat16"]
        and not result.passed
        and not result.is_another
    )


def edit_tensor(path, name, change):
    from safetensors.torch import load_file, save_file

    tensors = load_file(path)
    tensors[name] = change(tensors[name]).contiguous()
    save_file(tensors, path, metadata={"format": "pt"})
