"""A phase with language.kind "tokens", from the config to the export: learnt, trained, kept, found again, refused."""

import copy
import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medkor_jax.data import embedded
from medkor_jax.data.language import has_hangul, token_languages
from medkor_jax.eval.scorer import ModelScorer, read_prompts
from medkor_jax.io.export import export_hf
from medkor_jax.io.loaded_model import load
from medkor_jax.io.models import NEW_TOKENS, open_model
from medkor_jax.io.streaming import WeightsError
from medkor_jax.model.forward import Inputs, forward, project_logits
from medkor_jax.model.params import new_head_rows
from medkor_jax.model.prompts import make_routing, pad_prompts
from medkor_jax.parallel.mesh import host_mesh
from medkor_jax.run import pipeline
from medkor_jax.run.config_file import make_recipe
from medkor_jax.run.lineage import Stale
from medkor_jax.run.phases import ConfigError

SIZE = 24
OPEN = dict(reading="absolute", threshold=1.0, on_failure="continue", allow_chance=True)
STAGE = dict(steps=2, batch_size=4, seq_len=64, warmup_steps=0)
LORA = dict(rank=2, alpha=4.0, targets=("q",))


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    directory = tmp_path_factory.mktemp("data")
    for code in ("ko", "en"):
        rows = [{"text": text} for _, text in embedded.texts(code, "train")[:60]]
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (directory / f"{code}.jsonl").write_text(lines)
    return directory


def make_config(run_dir, weights, files):
    korean, english = (
        dict(kind="text", path=str(files / f"{code}.jsonl"), language=code) for code in ("ko", "en")
    )
    common = dict(exam="english", gate=OPEN, **STAGE)
    return dict(
        run_dir=str(run_dir), weights=str(weights), run=("phase1", "phase2", "phase3"), phases=("phase1", "phase2", "phase3"),
        dtype="float32", param_dtype="float32", remat="none",
        exams=dict(english=dict(source=dict(path="embedded", split="valid", language="en", limit=4), batch_size=8)),
        held_out=dict(korean=dict(kind="text", path="embedded", language="ko", subset="test", limit=4)), held_out_tokens=0,
        phase1=dict(exam="english", gate=OPEN, is_reference=True),
        phase2=dict(after="phase1", language=dict(kind="tokens", size=SIZE, least_seen=3), trees=("lang",),
                    data=dict(korean=korean, english=english), **common),
        phase3=dict(after="phase2", lora=LORA, trees=("lora", "lang"), retention=dict(weight=0.5, layers=2, positions=4),
                    data=dict(korean=korean, english=english), **common),
    )  # fmt: skip


@pytest.fixture(scope="module")
def finished(tiny_base_dir, files, tmp_path_factory):
    """(its directory, its config): a run of three phases, the second of which adds tokens."""
    directory = tmp_path_factory.mktemp("tokens") / "run"
    config = make_config(directory, tiny_base_dir, files)
    pipeline.Run(make_recipe(config)).all()
    return directory, config


def test_every_phase_behind_has_the_tokens_and_trained_their_rows(finished):
    directory, _ = finished
    before, after = (open_model(directory / name) for name in ("phase2", "phase3"))
    assert open_model(directory / "phase1").new_tokens is None
    assert before.new_tokens == after.new_tokens and len(after.new_tokens.pieces) == SIZE
    rows = [model.load(jnp.float32, host_mesh()).lang for model in (before, after)]
    for name in ("vector", "input", "output"):
        assert not np.array_equal(rows[0][name], rows[1][name]), name
    losses = [
        json.loads((directory / name / "summary.json").read_text())["after"]["watch"]["korean"]
        for name in ("phase1", "phase2")
    ]
    # losses are said a token of the base, whose number the same text does not change
    assert losses[0]["tokens"] == losses[1]["tokens"]


@pytest.fixture(scope="module")
def exported(finished, tmp_path_factory):
    """(the run's model, its export's directory)"""
    model, out = open_model(finished[0] / "phase3"), tmp_path_factory.mktemp("exported") / "model"
    export_hf(model, out)
    return model, out


TEXTS = [
    *(text for _, text in embedded.texts("ko", "test")[:2]),
    *(text for _, text in embedded.texts("en", "test")[:1]),
    "\ud658\uc790\ub294  (aspirin 37.5\ub3c4)\n\n\ubec1 \uac00\uac00\uac00\uac00 <b>\ud658\uc790</b>\u2581\ud658",
]


def our_logits(model, ids):
    params, tokens = model.load(jnp.float32, host_mesh()), jnp.array([ids], jnp.int32)
    langs = jnp.asarray(token_languages(np.array(ids), model.tokenizer)[None])
    inputs = Inputs(tokens, jnp.arange(len(ids))[None], jnp.ones_like(tokens), langs)
    with jax.default_matmul_precision("highest"):
        hidden = forward(params, model.config, inputs, dtype=jnp.float32)
        return np.asarray(project_logits(params.base, hidden[0], new_head_rows(params)))


def test_transformers_reads_and_answers_as_the_run_does(exported):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    model, out = exported
    theirs = transformers.AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(out)
    head, table = theirs.get_output_embeddings().weight, theirs.get_input_embeddings().weight
    assert head.data_ptr() != table.data_ptr() and len(head) == model.config.vocab_size + SIZE
    n_new = 0
    for text in TEXTS:
        ids = [model.tokenizer.bos_id, *model.tokenizer.encode(text)]
        assert tokenizer(text)["input_ids"] == ids, text
        assert tokenizer.decode(ids, skip_special_tokens=True) == text
        n_new += sum(i >= model.config.vocab_size for i in ids)
        with torch.no_grad():
            logits = theirs(input_ids=torch.tensor([ids])).logits[0].numpy()
        np.testing.assert_allclose(logits, our_logits(model, ids), atol=2e-4, rtol=0)
    assert n_new > 10


def test_an_export_is_weights_like_any_other(exported):
    model, out = exported
    again = open_model(out)
    assert again.new_tokens is None and again.config.vocab_size == model.config.vocab_size + SIZE
    for text in TEXTS:
        ids = again.tokenizer.encode(text)
        assert ids == model.tokenizer.encode(text) and again.tokenizer.decode(ids) == text
    mute = make_routing(again.tokenizer, again.config.vocab_size, by_token=True).mute
    ours = make_routing(model.tokenizer, model.config.vocab_size, by_token=True).mute
    np.testing.assert_array_equal(mute, ours)


def test_it_writes_new_tokens_and_its_cache_gives_what_a_full_pass_gives(finished):
    loaded = load(open_model(finished[0] / "phase3"), jnp.float32, host_mesh())
    lang = loaded.params.lang  # louder, so that new tokens are what it likes to say
    loud = loaded.params.replace(lang=lang | {"output": 4 * lang["output"]})
    scorer = ModelScorer(dataclasses.replace(loaded, params=loud), dtype=jnp.float32, batch_size=1)
    ids = [loaded.tokenizer.bos_id, *loaded.tokenizer.encode(TEXTS[0])][:24]
    (written,) = scorer.decoder.generate(loud, [ids], max_new_tokens=8)
    assert any(token >= loaded.config.vocab_size for token in written.tokens)
    assert has_hangul(written.text) and written.text == loaded.tokenizer.decode(written.tokens)
    each = scorer.next_logits([ids], [written.tokens[0], loaded.tokenizer.eos_id])
    (nats,) = scorer.continuation_nats([ids], [[list(written.tokens)]])
    assert each[0, 0] > each[0, 1] and np.isfinite(nats).all()
    prompt = pad_prompts([[*ids, *written.tokens]], scorer.routing)
    hidden = read_prompts(loud, prompt, loaded.config, jnp.float32)[0, len(ids) - 1 :]
    logits = project_logits(loud.base, hidden[:8], new_head_rows(loud)) + scorer.routing.mute
    assert logits.argmax(-1).tolist() == list(written.tokens)
