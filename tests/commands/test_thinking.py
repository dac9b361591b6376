"""A model made by hand that thinks before it answers: asked, examined, counted and shown.

Its next token depends on its last one alone: one layer whose MLP maps each token of a chain to the next.
"""

import io
import json
import pathlib

import pytest
import sentencepiece

from medkor_jax import cli
from medkor_jax.commands.ask import ask, exam_question
from medkor_jax.commands.eval import evaluate_file
from medkor_jax.commands.stream import Stream
from medkor_jax.data import embedded
from medkor_jax.data.contents import checksum, content_digest
from medkor_jax.data.reasoning import ReasoningFormat, reasoning_prompt
from medkor_jax.data.thinking import SWITCH
from medkor_jax.data.tokenizer import Tokenizer
from medkor_jax.eval import harness
from medkor_jax.eval.exam import READ_VERSION
from medkor_jax.eval.scorer import ModelScorer
from medkor_jax.io.export_tokenizer import write_tokenizer
from medkor_jax.io.loaded_model import style_of
from medkor_jax.io.models import open_model
from medkor_jax.run.config_file import make_recipe
from medkor_jax.run.corpora import Corpora
from medkor_jax.run.facts import exam_asked
from medkor_jax.run.readiness import checks

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

GEMMA3 = pathlib.Path(__file__).parents[1] / "data" / "chat" / "gemma3.jinja"
WIDTH = 32
OPENS, CLOSES = "<unused94>", "<unused95>"
OWN = ReasoningFormat("<unused94>thought", CLOSES)
BRACKETS = ReasoningFormat("[", "]")
THOUGHT = "Scurvy. So A"
HEAD = (OPENS, "thought\n\n" + THOUGHT, CLOSES)


def make_chain(tokenizer, *parts):
    """Returns ids: control tokens by name, other parts as text; all different, so that each has one successor."""
    ids = []
    for part in parts:
        named = tokenizer.control_ids.get(part)
        ids += tokenizer.encode(part) if named is None else [named]
    assert len(set(ids)) == len(ids) < WIDTH, ids
    return ids


def write_model(directory, tokenizer, chain, loops_to=None):
    """Writes weights that go on from the end of a prompt ("\n") along the chain; then to its token number loops_to."""
    (start,) = tokenizer.encode("\n")
    states = [start, *chain]
    config = transformers.Gemma3TextConfig(
        vocab_size=tokenizer.vocab_size, hidden_size=WIDTH, intermediate_size=WIDTH, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1,
        head_dim=8, query_pre_attn_scalar=8, sliding_window=64, max_position_embeddings=4096,
    )  # fmt: skip
    model = transformers.Gemma3ForCausalLM(config)
    layer = model.model.layers[0]
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        for place, token in enumerate(states):
            model.model.embed_tokens.weight[token, place] = 1.0
        layer.mlp.gate_proj.weight.copy_(torch.eye(WIDTH))
        layer.mlp.up_proj.weight.copy_(torch.eye(WIDTH))
        for place in range(len(states) - 1):
            layer.mlp.down_proj.weight[place + 1, place] = 1.0
        if loops_to is not None:
            layer.mlp.down_proj.weight[loops_to, len(states) - 1] = 1.0
        layer.post_feedforward_layernorm.weight.fill_(20.0)
    model.save_pretrained(directory)
    write_tokenizer(tokenizer, directory, max_positions=4096)
    (directory / "chat_template.jinja").write_text(GEMMA3.read_text("utf-8"), "utf-8")
    said = {"bos_token_id": 2, "eos_token_id": [1, tokenizer.end_of_turn_id], "pad_token_id": 0}
    (directory / "generation_config.json").write_text(json.dumps(said))
    return str(directory)


def make_tokenizer():
    """Returns a small vocabulary like Gemma's, with turns and the marks of a thought."""
    lines = [text for code in ("en", "ko") for _, text in embedded.texts(code)]
    lines += [f" A B C D E [why] C {THOUGHT} thought"] * 400
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_writer=written, model_type="bpe",
        vocab_size=900, byte_fallback=True, character_coverage=0.98, normalization_rule_name="identity", add_dummy_prefix=False,
        remove_extra_whitespaces=False, pad_id=0, eos_id=1, bos_id=2, unk_id=3, pad_piece="<pad>", eos_piece="<eos>", bos_piece="<bos>",
        control_symbols=["<start_of_turn>", "<end_of_turn>", OPENS, CLOSES], user_defined_symbols=["\n", "\n\n", "<b>"], minloglevel=2,
    )  # fmt: skip
    return Tokenizer.parse_sentencepiece(written.getvalue())


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer()


@pytest.fixture(scope="module")
def models(tmp_path_factory, tokenizer):
    """By name: answers in brackets, with the letter alone behind the thought, and never done thinking."""
    place = tmp_path_factory.mktemp("thinkers")
    brackets = make_chain(tokenizer, *HEAD, " [why] C", "<end_of_turn>")
    own = make_chain(tokenizer, *HEAD, "C", "<end_of_turn>")
    endless = make_chain(tokenizer, *HEAD[:2])
    return {
        "brackets": write_model(place / "brackets", tokenizer, brackets),
        "own": write_model(place / "own", tokenizer, own),
        "endless": write_model(place / "endless", tokenizer, endless, loops_to=4),
    }


LONG = dict(max_thinking_tokens=12, max_new_tokens=8)


def sit(weights, mode, **settings):
    return evaluate_file(weights, "embedded", language="en", limit=3, mode=mode, **settings)


def test_its_answers_are_those_of_transformers_with_marks_and_all(models):
    report = sit(models["brackets"], "reason", form=BRACKETS, **LONG)
    theirs = transformers.AutoTokenizer.from_pretrained(models["brackets"])
    model = transformers.AutoModelForCausalLM.from_pretrained(
        models["brackets"], dtype=torch.float32
    )
    asked = [
        {"role": "system", "content": SWITCH},
        {"role": "user", "content": reasoning_prompt(embedded.questions("valid", "en")[0])},
    ]
    ids = theirs.apply_chat_template(asked, add_generation_prompt=True, return_tensors="pt")
    style = style_of(open_model(models["brackets"]))
    assert style.prompt(asked[1]["content"], system=SWITCH) == ids["input_ids"][0].tolist()
    written = model.generate(**ids, max_new_tokens=20, do_sample=False)[0, ids["input_ids"].shape[1] :]  # fmt: skip
    text = theirs.decode(written, skip_special_tokens=True)
    assert text == f"{OPENS}thought\n\n{THOUGHT}{CLOSES} [why] C"
    assert [answer.text for answer in report.answers] == [text] * 3


def test_it_is_examined_and_counted(models, tokenizer, monkeypatch):
    monkeypatch.setattr(harness, "MAX_NEW_TOKENS", 8)
    for mode, settings in (("reason", dict(form=BRACKETS)), ("harness", {})):
        report = sit(models["brackets"], mode, **LONG | settings)
        n_thought, n_tokens = report.answers[0].n_thought, report.answers[0].n_tokens
        assert {a.predicted for a in report.answers} == {"C"} and report.style == "chat"
        assert n_thought == len(make_chain(tokenizer, OPENS, "thought\n\n" + THOUGHT, CLOSES))  # fmt: skip
        assert n_tokens - n_thought == 5  # " [", "why", "]", " C" and the end
        assert report.thinking.mean_thought == n_thought and report.thinking.unfinished == 0
        assert report.made_by["prompts"] != sit(models["brackets"], mode, max_new_tokens=20, **settings).made_by["prompts"]  # fmt: skip
        short = sit(
            models["brackets"],
            mode,
            **settings,
            max_thinking_tokens=n_thought - 1,
            max_new_tokens=9,
        )
        assert {a.predicted for a in short.answers} == {None} and short.thinking.unfinished == 1
        assert short.overall.correct == 0
    narrow = sit(
        models["brackets"], "reason", form=BRACKETS, max_thinking_tokens=n_thought, max_new_tokens=4
    )
    assert {a.is_whole for a in narrow.answers} == {False} and narrow.overall.correct == 0


def test_what_never_ends_thinking_is_never_right(models, monkeypatch):
    monkeypatch.setattr(harness, "MAX_NEW_TOKENS", 8)
    for mode in ("reason", "harness"):
        report = sit(models["endless"], mode, max_new_tokens=8, max_thinking_tokens=12)
        assert {a.predicted for a in report.answers} == {None}
        assert report.thinking.unfinished == 1 and report.overall.correct == 0
        assert {a.is_whole for a in report.answers} == {False}
        assert {a.n_thought for a in report.answers} == {20}


def test_its_own_tags_are_a_format(models):
    for asked in (LONG, dict(max_new_tokens=20)):
        report = sit(models["own"], "reason", form=OWN, **asked)
        assert {(a.predicted, a.has_format) for a in report.answers} == {("C", True)}
        assert report.thinking.mean_said == 2


def shown(weights, question, **settings):
    parts = []
    asked = ask(weights, question, mode="reason", write=parts.append, **settings)
    text = "".join(parts)
    assert OPENS not in text and CLOSES not in text and "thought\n" not in text
    return asked, text


def test_asking_shows_its_thinking_apart(models):
    question = exam_question("embedded", 1, language="en")
    asked, text = shown(models["brackets"], question, form=BRACKETS, **LONG)
    assert text == f"\nthinking:\n\n{THOUGHT}\n\nanswer:\n[why]"
    assert (asked.thought, asked.is_closed) == (THOUGHT, True) and len(asked.probabilities) == 5
    assert asked.probabilities[2] > 0.98
    asked, text = shown(models["own"], question, form=OWN, **LONG)
    assert text == f"\nthinking:\n\n{THOUGHT}\n\nanswer:"
    assert (asked.thought, asked.text, asked.is_closed) == (THOUGHT, "", True)
    assert asked.probabilities[2] > 0.98
    asked, text = shown(models["brackets"], "What is it?", **LONG)
    assert text == f"\nthinking:\n\n{THOUGHT}\n\nanswer:\n[why] C"
    assert (asked.thought, asked.text) == (THOUGHT, " [why] C")
    for limit, weights in ((12, "endless"), (5, "brackets")):
        asked, text = shown(
            models[weights], question, form=BRACKETS, max_thinking_tokens=limit, max_new_tokens=20
        )
        assert text.endswith(f"(thinking did not end within its {limit} tokens)")
        assert asked.probabilities == () and not asked.is_closed


def test_asking_sends_the_switch_as_the_systems_text(models, monkeypatch):
    sent, ask_logits = [], ModelScorer.next_logits

    def noting(self, prompts, token_ids):
        sent.extend(prompts)
        return ask_logits(self, prompts, token_ids)

    monkeypatch.setattr(ModelScorer, "next_logits", noting)
    question = exam_question("embedded", 1, language="en")
    style = style_of(open_model(models["own"]))
    for settings, system in ((LONG, SWITCH), (dict(max_new_tokens=20), "")):
        shown(models["own"], question, form=OWN, **settings)
        expected = style.prompt(reasoning_prompt(question), system=system)
        assert sent.pop()[: len(expected)] == expected


def test_a_stream_writes_headings_and_never_half_a_mark():
    text = f"{OPENS}thought\nScurvy <b> it is.\n{CLOSES}\nC"
    for step in (1, 2, 7):
        parts = []
        stream = Stream(parts.append, ("<R/>",))
        for n in range(step, len(text), step):
            stream.show(text[:n])
            assert "<unused" not in "".join(parts)
        stream.finish(text)
        assert "".join(parts) == "thinking:\nScurvy <b> it is.\n\n\nanswer:\nC"


def test_the_commands_take_the_limit_and_refuse_it_in_time(models, tiny_base_dir, capsys):
    limit = ["--max-thinking-tokens", "12"]
    words = ["ask", "--weights", models["brackets"], "--question", "Which?\nA. a\nB. b\nC. c"]
    assert cli.main([*words, *limit, "--tags", "[", "]"]) == 0
    out = capsys.readouterr().out
    assert "thinking:\n" in out and "answer:\n[why]" in out and "<unused" not in out
    examined = ["eval", "--weights", models["brackets"], "--exam", "embedded", "--language", "en", "--limit", "2"]  # fmt: skip
    assert cli.main([*examined, *limit, "--mode", "reason", "--tags", "[", "]"]) == 0
    assert "tokens thought and" in capsys.readouterr().out
    for extra, said in (
        ([*limit], "'letter' mode reads the model right behind"),
        ([*limit, "--mode", "reason", "--style", "plain"], "asked in 'plain' form"),
    ):
        assert cli.main([*examined, *extra]) == 1
        assert said in capsys.readouterr().err
    for extra, said in (
        (["--style", "plain"], "asked in 'plain' form"),
        (["--mode", "letter"], "'letter' mode reads the model right behind"),
    ):
        assert cli.main([*words, *limit, *extra]) == 1
        assert said in capsys.readouterr().err


def recipe_of(weights, tmp_path, **exam):
    source = dict(path="embedded", split="valid", language="en", limit=2)
    asked = dict(mode="reason", source=source) | exam
    gate = dict(reading="absolute", threshold=1.0, on_failure="continue", allow_chance=True)
    return make_recipe(
        dict(
            run_dir=str(tmp_path / "run"), weights=weights, phases=("phase1",), run=("phase1",), exams=dict(exam=asked),
            phase1=dict(exam="exam", gate=gate),
        )
    )  # fmt: skip


def test_a_config_says_it_and_a_run_of_before_stays_what_it_was(models, tiny_base_dir, tmp_path):
    def digest(**exam):
        recipe = recipe_of(models["own"], tmp_path, **exam)
        return exam_asked(recipe, Corpora(False, recipe.reasoning), recipe.exams[0])

    recipe = recipe_of(models["own"], tmp_path)
    questions = Corpora(False, recipe.reasoning).questions(recipe.exams[0].source)
    asked = [reasoning_prompt(question) for question in questions]
    said = (READ_VERSION, "reason", asked, content_digest(questions), (512, recipe.reasoning))
    how = (recipe.dtype, recipe.param_dtype, recipe.language_unit)
    assert digest() == checksum(repr((said, how)))  # as it was before there was a limit
    assert digest() == digest(max_thinking_tokens=0) != digest(max_thinking_tokens=5)
    assert digest(max_thinking_tokens=5) != digest(max_thinking_tokens=6)
    with pytest.raises(ValueError, match="'letter' mode reads the model right behind"):
        recipe_of(models["own"], tmp_path, mode="letter", max_thinking_tokens=5)

    def check(weights, **exam):
        recipe = recipe_of(weights, tmp_path, **exam)
        for ask_check in checks(recipe, Corpora(False, recipe.reasoning)).values():
            ask_check()

    check(models["own"], max_thinking_tokens=512)
    with pytest.raises(ValueError, match="exam 'exam': max_thinking_tokens is 5 and the model is"):
        check(str(tiny_base_dir), max_thinking_tokens=5)
    with pytest.raises(ValueError, match="512 and max_thinking_tokens 4000, and .* 4096 positions"):
        check(models["own"], max_thinking_tokens=4000)
