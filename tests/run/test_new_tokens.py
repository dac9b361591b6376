"""A phase with language.kind "tokens", from the config to the export: learnt, trained, kept, found again, refused."""

import copy
import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medkor_jax.adapt.language import make_language, rows_of_new
from medkor_jax.data import embedded
from medkor_jax.data.language import has_hangul, token_languages
from medkor_jax.eval.scorer import ModelScorer, read_prompts
from medkor_jax.io.export import export_hf
from medkor_jax.io.files import write_sealed
from medkor_jax.io.loaded_model import load
from medkor_jax.io.models import NEW_TOKENS, open_model
from medkor_jax.io.streaming import WeightsError
from medkor_jax.model.forward import Inputs, forward, project_logits
from medkor_jax.model.params import Params, new_head_rows
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


KOREAN, ENGLISH = ([text for _, text in embedded.texts(code, "train")[:8]] for code in ("ko", "en"))
TEXTS = [
    " ".join(KOREAN),
    ENGLISH[0],
    "환자는  (aspirin 37.5도)\n\n뷁 가가가가 <b>환자</b>환",
]


def logits_of(params, config, tokenizer):
    """Returns (ids, logits [T, V]) of every text, by one pass over all."""
    all_ids = [[tokenizer.bos_id, *tokenizer.encode(text)] for text in TEXTS]
    tokens, langs = np.zeros((2, len(TEXTS), max(map(len, all_ids))), np.int32)
    for row, ids in enumerate(all_ids):
        tokens[row, : len(ids)] = ids
        langs[row, : len(ids)] = token_languages(np.array(ids), tokenizer)
    at = np.broadcast_to(np.arange(tokens.shape[1], dtype=np.int32), tokens.shape)
    inputs = Inputs(*map(jnp.asarray, (tokens, at, np.ones_like(tokens), langs)))
    with jax.default_matmul_precision("highest"):
        hidden = forward(params, config, inputs, dtype=jnp.float32)
        logits = np.asarray(project_logits(params.base, hidden, new_head_rows(params)))
    return [(ids, row[: len(ids)]) for ids, row in zip(all_ids, logits, strict=True)]


def test_transformers_reads_and_answers_as_the_run_does(exported):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    model, out = exported
    theirs = transformers.AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(out)
    head, table = theirs.get_output_embeddings().weight, theirs.get_input_embeddings().weight
    assert head.data_ptr() != table.data_ptr() and len(head) == model.config.vocab_size + SIZE
    n_new = 0
    ours = logits_of(model.load(jnp.float32, host_mesh()), model.config, model.tokenizer)
    for text, (ids, wanted) in zip(TEXTS, ours, strict=True):
        assert tokenizer(text)["input_ids"] == ids, text
        assert tokenizer.decode(ids, skip_special_tokens=True) == text
        n_new += sum(i >= model.config.vocab_size for i in ids)
        with torch.no_grad():
            logits = theirs(input_ids=torch.tensor([ids])).logits[0].numpy()
        np.testing.assert_allclose(logits, wanted, atol=2e-4, rtol=0)
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


def test_the_start_changes_no_logit_of_a_text_of_old_tokens(finished, tiny_base_dir):
    plain, new = open_model(tiny_base_dir), open_model(finished[0] / "phase2").new_tokens
    base = plain.base.load(jnp.float32)
    rows = rows_of_new(base, new.spelt)
    lang = make_language(plain.config, kind="tokens", size=SIZE) | rows
    before, after = (
        logits_of(params, plain.config, plain.tokenizer)
        for params in (Params(base), Params(base, lang=lang))
    )
    for (_, old), (_, now) in zip(before, after, strict=True):
        np.testing.assert_array_equal(now[:, : plain.config.vocab_size], old)
    word, scale = new.spelt[-1], plain.config.d_model**0.5
    embed = np.asarray(base["embed"])
    np.testing.assert_allclose(rows["input"][-1] / scale, embed[list(word)].mean(0), atol=1e-6)
    np.testing.assert_allclose(rows["output"][-1] / scale, embed[word[0]], atol=1e-6)


@pytest.fixture
def stopped(finished, tmp_path):
    """(its directory, its config): the same run as it stands when it is killed at the end of phase2's training."""
    directory, config = shutil.copytree(finished[0], tmp_path / "run"), copy.deepcopy(finished[1])
    for path in (*(directory / "phase2").iterdir(), directory / "phase3"):
        if path.name != "train":
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    return directory, config | dict(run_dir=str(directory), run=("phase2",))


def test_a_run_that_goes_on_has_the_same_tokens(finished, stopped):
    directory, config = stopped
    pipeline.Run(make_recipe(config)).all()
    again, before = (open_model(one / "phase2") for one in (directory, finished[0]))
    assert again.new_tokens == before.new_tokens and again.digest == before.digest


def other_text(config, directory, code):
    """Gives phase2 other Korean text, or text of another language in its place."""
    rows = [{"text": text} for _, text in embedded.texts(code, "train")[60:120]]
    path = directory / "other.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config["phase2"]["data"] = dict(korean=dict(kind="text", path=str(path), language=code))


def test_other_text_is_other_tokens_and_refused_like_any_change(stopped, finished):
    directory, config = stopped
    other_text(config, directory, "ko")
    with pytest.raises(ValueError, match=r"was started with other settings \(data: was"):
        pipeline.Run(make_recipe(config)).all()
    config = copy.deepcopy(finished[1])
    config["phase2"]["language"]["size"] = SIZE + 1
    with pytest.raises(Stale, match="language.size was 24, is 25"):
        pipeline.Run(make_recipe(config)).all()


def test_what_cannot_be_learnt_is_refused_before_anything_runs(tiny_base_dir, files, tmp_path):
    config = make_config(tmp_path / "run", tiny_base_dir, files)
    config["phase2"]["language"]["size"] = 9999
    with pytest.raises(
        ConfigError, match=r"phase2.language asks for 9999 .* gives \d+ new tokens that are seen 3"
    ):
        pipeline.Run(make_recipe(config)).all()
    other_text(config, tmp_path, "en")
    with pytest.raises(ConfigError, match="there is no Korean text to learn new tokens from"):
        pipeline.Run(make_recipe(config)).all()
    assert not (tmp_path / "run/phase1").exists()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (dict(language=dict(kind="tokens")), "size 0: say how many"),
        (dict(language=dict(kind="vector", size=5)), "only kind 'tokens' adds tokens"),
        (dict(language=dict(kind="tokens", size=5), steps=0), "it trains nothing"),
        (dict(language=dict(kind="tokens", size=5, least_seen=0)), "must be >= 1"),
    ],
)
def test_settings_that_cannot_be_are_refused_by_the_config(
    changes, words, tiny_base_dir, files, tmp_path
):
    config = make_config(tmp_path, tiny_base_dir, files)
    config["phase2"] |= changes
    with pytest.raises(ConfigError, match=words):
        make_recipe(config)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (dict(language=dict(kind="tokens", size=7)), "size is 7, and phase2, .* adds 24 new"),
        (dict(language=dict(kind="vector")), "of kind 'vector'; the model has"),
        (dict(data="korean"), "does not know its new Korean tokens.* Add English text"),
    ],
)
def test_a_later_phase_is_told_what_does_not_fit(changes, words, finished, tmp_path):
    config, directory = copy.deepcopy(finished[1]), tmp_path / "run"
    shutil.copytree(finished[0], directory)
    shutil.rmtree(directory / "phase3")
    data = config["phase3"]["data"]
    if "data" in changes:
        changes = dict(data={"korean": data["korean"]})
    config["phase3"] |= changes
    with pytest.raises(ConfigError, match=words):
        pipeline.Run(make_recipe(config | dict(run_dir=str(directory), run=("phase3",)))).all()


@pytest.mark.parametrize("spoil", ["missing", "other", "damaged"])
def test_tokens_that_are_not_those_of_the_model_are_refused(spoil, finished, tmp_path):
    shutil.copytree(finished[0], tmp_path / "run")
    path = tmp_path / "run/phase3" / NEW_TOKENS
    if spoil == "missing":
        path.unlink()
    elif spoil == "damaged":
        path.write_text(path.read_text().replace('"first_id": 1024', '"first_id": 1025'))
    else:
        new = open_model(tmp_path / "run/phase3").new_tokens
        write_sealed(path, dataclasses.replace(new, pieces=new.pieces[::-1]).to_json())
    with pytest.raises(WeightsError, match=NEW_TOKENS):
        open_model(tmp_path / "run/phase3")
