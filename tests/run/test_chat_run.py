"""A whole run of an instruction-tuned checkpoint, asked as transformers renders its template: every prompt, in every phase.

The checkpoint is of random numbers and tiny; its names are those of a multimodal Gemma 3, its template and its vocabulary are
Gemma 3's own.
"""

import contextlib
import dataclasses
import json
import pathlib

import jax
import numpy as np
import pytest

from medkor_jax import cli
from medkor_jax.commands.ask import ask, typed_question
from medkor_jax.commands.eval import evaluate_file
from medkor_jax.data import embedded
from medkor_jax.data.batches import Batches
from medkor_jax.data.pairs import DIRECTIONS, Pair, both_ways, translation_prompt
from medkor_jax.data.question import answer_text, prompt
from medkor_jax.data.reasoning import ReasoningFormat, reasoned_text, reasoning_prompt
from medkor_jax.data.rows import Source
from medkor_jax.data.sources import load_questions
from medkor_jax.eval.report import Report
from medkor_jax.eval.scorer import ModelScorer
from medkor_jax.eval.verdict import GateClosed, read_verdict, waive
from medkor_jax.io.embedded_model import EMBEDDED_MODEL
from medkor_jax.io.export import export_hf
from medkor_jax.io.export_tokenizer import write_tokenizer
from medkor_jax.io.loaded_model import style_of
from medkor_jax.io.models import open_model, save_model
from medkor_jax.io.streaming import WeightsError
from medkor_jax.parallel.mesh import host_mesh
from medkor_jax.run import pipeline
from medkor_jax.run.asked_form import asked_form
from medkor_jax.run.config_file import make_recipe
from medkor_jax.run.lineage import Stale
from medkor_jax.train.rollout import Rollouts

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

GEMMA3 = pathlib.Path(__file__).parents[1] / "data" / "chat" / "gemma3.jinja"
START, END = 105, 106  # of a turn, in Gemma 3's vocabulary
GENERATION = {
    "bos_token_id": 2,
    "eos_token_id": [1, END],
    "pad_token_id": 0,
    "do_sample": True,
    "top_k": 64,
    "top_p": 0.95,
}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    directory = tmp_path_factory.mktemp("medgemma") / "tiny-it"
    text = dict(
        vocab_size=262208, hidden_size=16, intermediate_size=32, num_hidden_layers=6, num_attention_heads=2,
        num_key_value_heads=1, head_dim=8, query_pre_attn_scalar=8, sliding_window=64, max_position_embeddings=4096,
    )  # fmt: skip
    vision = dict(
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=28,
        patch_size=14,
    )
    config = transformers.Gemma3Config(
        text_config=text, vision_config=vision, mm_tokens_per_image=4
    )
    torch.manual_seed(0)
    model = transformers.Gemma3ForConditionalGeneration(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.3)
        # A turn that ends now and then, or nothing could be rewarded: one column of the table is the same for all pieces, and
        # stands out for the end of a turn.
        table, ids = (
            model.get_input_embeddings().weight,
            torch.tensor([[2, START, *range(2000, 2040)]]),
        )
        table[:, 0] = 1.0
        hidden = model.model.language_model(input_ids=ids).last_hidden_state[0, 20:]
        others = torch.logsumexp(hidden @ table.T, 1) - hidden[:, 0]
        table[END, 0] += (others / hidden[:, 0]).median()
    model.save_pretrained(directory)
    write_tokenizer(open_model(EMBEDDED_MODEL).tokenizer, directory, max_positions=4096)
    (directory / "chat_template.jinja").write_text(GEMMA3.read_text("utf-8"), "utf-8")
    (directory / "generation_config.json").write_text(json.dumps(GENERATION))
    return directory


@pytest.fixture(scope="module")
def theirs(checkpoint):
    """theirs(*turns, opens=True): ids as transformers renders turns of user and model by turns."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(checkpoint)

    def render(*turns, opens=True):
        said = [
            {"role": role, "content": text}
            for role, text in zip(("user", "assistant") * len(turns), turns)
        ]
        return tuple(tokenizer.apply_chat_template(said, add_generation_prompt=opens)["input_ids"])

    return render


LORA = dict(rank=2, alpha=4.0, targets=("q", "down"))
SIZES = dict(steps=1, batch_size=4, seq_len=256, warmup_steps=0, save_every=1)
SHORT = dict(seq_len=64, loss_positions=16)  # a vocabulary of 262,208 at few positions
OPEN = dict(reading="absolute", threshold=1.0, on_failure="continue", allow_chance=True)
CLOSED = OPEN | dict(on_failure="retain", rounds=1, threshold=0.5)
TREES = ("lora", "lang", "expand")
RULES = dict(
    lora=dict(pattern="lora/.*", learning_rate=0.01),
    lang=dict(pattern="lang/.*", learning_rate=0.01),
    expand=dict(pattern="expand/.*", learning_rate=0.001),
)


def source(kind, language="", **more):
    return dict(kind=kind, path="embedded", language=language, **more)


def exam(language, mode="letter", limit=5, **more):
    return dict(
        source=dict(path="embedded", split="valid", language=language, limit=limit),
        mode=mode,
        batch_size=5,
        **more,
    )


PAIRS = source("translation", subset="train", limit=12)
TEXT = {"english-text": source("text", "en", subset="train", limit=20)}
EXAM = {"exam-train": source("exam", "ko", split="train", limit=30)}
TALKS = [
    {"messages": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "열이 나요.  "},
        {"role": "assistant", "content": " 언제부터인가요? "},
        {"role": "user", "content": "<end_of_turn> 어제부터요."},
        {"role": "assistant", "content": "병원에 오세요."},
    ]},
    {"question": "What is fever?", "answer": "A raised temperature."},
]  # fmt: skip


def make_config(run_dir, weights, talks, **changes):
    own_reward = talks.with_name("varied.py")
    stage = SIZES | dict(data=EXAM, rules=RULES)
    common = dict(exam="letters", gate=OPEN)
    remedy = dict(
        SIZES | SHORT,
        data=TEXT,
        rules=RULES,
        next_token_weight=0.0,
        retention=dict(weight=1.0, positions=2),
    )
    reward = dict(
        algorithm="grpo",
        rollout=dict(group_size=4, max_new_tokens=6, max_refills=0, patience=9),
        parts=dict(
            varied=dict(function=f"{own_reward}:varied", weight=1.0)
        ),  # random weights are never right
    )
    chat = {"talks": dict(kind="chat", path=str(talks), language="ko")}
    return dict(
        run_dir=str(run_dir), weights=str(weights), dtype="float32", param_dtype="float32", remat="none", max_translation_tokens=3,
        phases=(names := ("phase0", "phase1", "phase2", "phase3", "phase4", "phase5c", "phase5d")), run=names,
        exams=dict(
            letters=exam("en", limit=20),
            cloze=exam("ko", "cloze", phases=("phase1",)), reasoned=exam("en", "reason", max_new_tokens=4, phases=("phase5d",)),
        ),
        phase0=dict(lora=LORA, trees=("lora",), merge=True, **stage | dict(data=TEXT) | SHORT, **common),
        phase1=dict(after="phase0", is_reference=True, **common),
        phase2=dict(after="phase1", language=dict(kind="vector"), trees=("lang",), **stage | dict(data=chat), **common),
        phase3=dict(after="phase2", lora=LORA, trees=("lora", "lang"), remedy=remedy | dict(trees=("lora", "lang")),
                    **stage, **common | dict(gate=CLOSED)),
        phase4=dict(after="phase3", expand=dict(front=1, back=1), trees=TREES, translations={"pairs-judged": PAIRS | dict(subset="test", limit=2)},
                    **stage | dict(data={"pairs": PAIRS}), **common),
        phase5c=dict(after="phase4", trees=TREES, **stage | dict(data={"solutions": source("reasoning", "en", split="train", limit=12)}), **common),
        phase5d=dict(after="phase5c", trees=TREES, reward=reward, **stage, **common),
    ) | changes  # fmt: skip


class Seen:
    """Every row that was trained on, group that was rewarded, and prompt that was judged."""

    def __init__(self):
        self.dialogues, self.texts, self.groups, self.asked = set(), set(), [], set()

    def row(self, batch):
        for tokens, segments in zip(batch["tokens"], batch["segment_ids"]):
            for segment in range(1, int(segments.max(initial=0)) + 1):
                ids = tuple(int(i) for i in tokens[segments == segment])
                (self.dialogues if START in ids else self.texts).add(ids)


@contextlib.contextmanager
def watching():
    seen = Seen()
    with pytest.MonkeyPatch.context() as patch:

        def wrap(owner, name, note):
            made = getattr(owner, name)

            def wrapped(self, *given, **named):
                found = made(self, *given, **named)
                note(given, found)
                return found

            patch.setattr(owner, name, wrapped)

        wrap(Batches, "__next__", lambda _, batch: seen.row(batch))
        wrap(Rollouts, "_ask", lambda _, groups: seen.groups.extend(groups))
        for name in ("next_logits", "complete", "continuation_nats"):
            wrap(ModelScorer, name, lambda given, _: seen.asked.update(map(tuple, given[0])))
        yield seen


@pytest.fixture(scope="module")
def talks(tmp_path_factory):
    path = tmp_path_factory.mktemp("talks") / "talks.jsonl"
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in TALKS), "utf-8")
    path.with_name("varied.py").write_text(
        "import zlib\n\n\ndef varied(response, bound):\n    return zlib.crc32(response.text.encode()) % 97 / 96\n"
    )
    return path


@pytest.fixture(scope="module")
def ended(checkpoint, talks, tmp_path_factory):
    """The run's directory, and all that was seen in it."""
    directory = tmp_path_factory.mktemp("chat") / "run"
    config = make_recipe(make_config(directory, checkpoint, talks))
    with watching() as seen:
        with pytest.raises(GateClosed):  # of phase 3, once its remedy has run
            pipeline.Run(config).all()
        waive(directory / "phase3/verdict.json", "it knows nothing")
        pipeline.Run(config).all()
    return directory, seen


def solutions():
    return load_questions(
        Source("s", "reasoning", "embedded", split="train", language="en", limit=12), drop_bad=False
    ).rows


def test_every_dialogue_that_was_trained_on_is_theirs(ended, theirs):
    _, seen = ended
    whole = {
        theirs(prompt(q), answer_text(q).strip(), opens=False)
        for q in embedded.questions("train", "ko")[:30]
    }
    pairs = [Pair(*row) for row in embedded.pairs("train")[:12]]
    whole |= {
        theirs(asked, answer.strip(), opens=False)
        for pair in pairs for (asked, _), (answer, _) in (example.parts for example in both_ways(pair))
    }  # fmt: skip
    form = ReasoningFormat()
    whole |= {
        theirs(reasoning_prompt(q), reasoned_text(q, form).strip(), opens=False)
        for q in solutions()
    }
    whole.add(theirs("What is fever?", "A raised temperature.", opens=False))
    # control tokens in a turn stay text here: their rendering of such a turn would end it
    talk = [ids for ids in seen.dialogues if ids.count(START) == 4]
    assert len(talk) == 1 and talk[0].count(END) == 4
    assert seen.dialogues - set(talk) <= whole and len(seen.dialogues & whole) >= 8
    assert not any(END in ids or START in ids for ids in seen.texts)


def test_a_talk_of_several_turns_is_theirs(talks, checkpoint):
    tokenizer = transformers.AutoTokenizer.from_pretrained(checkpoint)
    style = style_of(open_model(checkpoint))
    messages = [
        dict(m, content=m["content"].replace("<end_of_turn>", "x")) for m in TALKS[0]["messages"]
    ]
    rendered = tokenizer.apply_chat_template(messages)["input_ids"]
    parts = [(m["content"], m["role"] == "assistant") for m in messages]
    ids, loss = style.dialogue(parts)
    assert [style.tokenizer.bos_id, *ids] == rendered
    said = [i for i, is_said in zip(ids, loss) if is_said]
    assert said == [*style.answer("언제부터인가요?"), END, *style.answer("병원에 오세요."), END]


def test_every_prompt_that_was_rewarded_is_theirs(ended, theirs):
    _, seen = ended
    assert seen.groups
    for group in seen.groups:
        assert tuple(group.prompt) == theirs(reasoning_prompt(group.question))


def test_every_prompt_that_judged_is_theirs(ended, theirs):
    _, seen = ended
    english, korean = embedded.questions("valid", "en")[:20], embedded.questions("valid", "ko")[:5]
    cloze = lambda q: q.question.strip() + "\n정답："
    pairs = [Pair(*row) for row in embedded.pairs("test")[:2]]
    expected = {theirs(prompt(q)) for q in english}
    expected |= {theirs(cloze(q)) for q in korean}
    expected |= {theirs(reasoning_prompt(q)) for q in english[:5]}
    expected |= {
        theirs(translation_prompt(getattr(pair, given), given, to))
        for pair in pairs
        for given, to in DIRECTIONS
    }
    assert seen.asked == expected


def test_the_form_stands_in_verdicts_answers_and_models(ended):
    run, _ = ended
    for phase in ("phase0", "phase3", "phase5d"):
        assert read_verdict(run / phase / "verdict.json")["style"] == "chat"
        assert Report.read(run / phase / "answers" / "letters-after.jsonl").style == "chat"
        assert (
            open_model(run / phase).style == "chat"
            and style_of(open_model(run / phase)).name == "chat"
        )
    assert "chat prompts" in Report.read(run / "phase1/answers/cloze-before.jsonl").table()


def test_a_run_that_was_taught_in_one_form_is_not_gone_on_with_in_another(ended, checkpoint, talks):
    run, _ = ended
    config = make_config(run, checkpoint, talks, style="plain")
    with pytest.raises(Stale, match="style was .*, is absent"):
        pipeline.Run(make_recipe(config)).all()


def test_auto_is_chat_for_what_was_tuned_to_it_alone(checkpoint, tmp_path, tiny_base_dir):
    assert style_of(open_model(checkpoint)).name == "chat"
    assert style_of(open_model(checkpoint), "plain").name == "plain"
    assert style_of(open_model(tiny_base_dir)).name == "plain"
    with pytest.raises(WeightsError, match="asked by its chat template and has none"):
        style_of(open_model(tiny_base_dir), "chat")
    pretrained = tmp_path / "tiny-pt"
    pretrained.mkdir()
    for file in checkpoint.iterdir():
        (pretrained / file.name).symlink_to(file)
    (pretrained / "generation_config.json").unlink()
    (pretrained / "generation_config.json").write_text(json.dumps(GENERATION | {"eos_token_id": 1}))
    assert style_of(open_model(pretrained)).name == "plain"
    assert style_of(open_model(pretrained), "chat").name == "chat"


def test_the_commands_ask_in_the_form_of_the_run(ended, theirs, capsys):
    run, _ = ended
    written = []
    with watching() as seen:
        report = evaluate_file(str(run), "embedded", mode="letter", language="en", limit=3)
        plain = evaluate_file(
            str(run), "embedded", mode="letter", language="en", limit=3, style="plain"
        )
        ask(str(run), typed_question("Which?\nA. a\nB. b\n"), mode="letter", write=written.append)
    assert (report.style, plain.style) == ("chat", "plain")
    assert sum(START in ids for ids in seen.asked) == 4
    assert report.made_by["prompts"] != plain.made_by["prompts"]
    question = embedded.questions("valid", "en")[0]
    assert theirs(prompt(question)) in seen.asked
    assert tuple(i for i in theirs("Which?\nA. a\nB. b\nAnswer:")) in seen.asked
    assert cli.main(
        ["ask", "--weights", str(run), "--question", "hi", "--max-new-tokens", "2"]
    ) in (None, 0)


def test_the_export_chats_in_transformers_as_here(ended, tmp_path):
    gguf = pytest.importorskip("gguf")
    run, _ = ended
    export_hf(open_model(run / "phase5d"), tmp_path / "out", text_only=True)
    assert open_model(tmp_path / "out").style == "chat"
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer.chat_template == GEMMA3.read_text("utf-8")
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    assert model.generation_config.eos_token_id == [1, END]
    questions = embedded.questions("valid", "en")[:3]
    report = evaluate_file(
        str(run / "phase5d"), "embedded", mode="reason", language="en", limit=3, max_new_tokens=8
    )
    for question, answer in zip(questions, report.answers, strict=True):
        asked = tokenizer.apply_chat_template(
            [{"role": "user", "content": reasoning_prompt(question)}], add_generation_prompt=True, return_tensors="pt"
        )  # fmt: skip
        written = model.generate(**asked, max_new_tokens=8, do_sample=False)[
            0, asked["input_ids"].shape[1] :
        ]
        assert tokenizer.decode(written, skip_special_tokens=True) == answer.text
    vocabulary = gguf.SpecialVocab(
        tmp_path / "out", load_merges=True
    )  # what llama.cpp's converter reads
    assert vocabulary.chat_template == tokenizer.chat_template
    assert vocabulary.special_token_ids["bos"] == 2
    assert model.get_input_embeddings().weight.shape[0] >= len(tokenizer)


def test_letters_follow_the_models_turn_and_not_a_space(checkpoint):
    style = style_of(open_model(checkpoint))
    question = embedded.questions("valid", "ko")[0]
    assert style.answer(answer_text(question)) == style.tokenizer.encode(
        answer_text(question).strip()
    )
    joined = style.answered(prompt(question), answer_text(question))
    assert joined == [*style.prompt(prompt(question)), *style.answer(answer_text(question))]
    assert np.asarray(jax.device_get(joined)).ndim == 1


def test_a_run_that_was_begun_plainly_goes_on_so(checkpoint, talks, tmp_path):
    recipe = make_recipe(make_config(tmp_path / "run", checkpoint, talks))
    assert asked_form(recipe).style.name == "chat"
    base = open_model(checkpoint)
    save_model(tmp_path / "run/phase0", base.load(np.float32, host_mesh()), base.base)
    stored = json.loads((tmp_path / "run/phase0/model.json").read_text("utf-8"))
    assert stored["style"] == "plain"
    form = asked_form(recipe)
    assert form.style.name == "plain" and "as this run was begun" in form.words
    assert asked_form(dataclasses.replace(recipe, style="chat")).style.name == "chat"
