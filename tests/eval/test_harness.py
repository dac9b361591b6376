import copy
import dataclasses
import json
import pathlib

import pytest

from medkor_jax.data import exams
from medkor_jax.data.question import LETTERS, answer_text
from medkor_jax.data.rows import Source
from medkor_jax.data.style import Plain
from medkor_jax.eval import harness

GEMMA3 = pathlib.Path(__file__).parents[1] / "data" / "chat" / "gemma3.jinja"


def with_turns(tokenizer):
    """The vocabulary of the tests, and two more ids for the beginning and the end of a turn."""
    other = copy.copy(tokenizer)
    other.control_ids = {"<bos>": tokenizer.bos_id, "<start_of_turn>": -1, "<end_of_turn>": -2}
    return other


@pytest.fixture
def doctor(shared_data):
    """The validation questions and the few-shot questions, as the project loads them."""
    directory = shared_data / "kormedmcqa" / "doctor"
    sources = [
        Source(name, "exam", str(directory / f"{name}.csv")) for name in ("valid", "fewshot")
    ]
    return [exams.load(source, drop_bad=False).rows for source in sources]


def harness_task(questions, shots, directory: pathlib.Path, num_fewshot: int, **how):
    """The real task of lm-eval 0.4.13, reading rows of the hub's form (answers 1-5) instead of the hub."""
    lm_eval = pytest.importorskip("lm_eval", reason="lm-eval is not installed")
    if lm_eval.__version__ != "0.4.13":
        pytest.skip(f"lm-eval {lm_eval.__version__} is installed; this project reproduces 0.4.13")
    from lm_eval.api.task import ConfigurableTask
    from lm_eval.tasks._yaml_loader import load_yaml

    files = {}
    for split, rows in (("test", questions), ("fewshot", shots)):
        files[split] = str(directory / f"{split}.jsonl")
        with open(files[split], "w", encoding="utf-8") as file:
            for q in rows:
                options = dict(zip(LETTERS[:5], q.options, strict=True))
                file.write(
                    json.dumps({"question": q.question, **options, "answer": q.answer + 1}) + "\n"
                )
    config = load_yaml(
        pathlib.Path(lm_eval.__file__).parent / "tasks" / "kormedmcqa" / "doctor.yaml"
    )
    config = {k: v for k, v in config.items() if k != "include"} | {
        "dataset_path": "json",
        "dataset_name": None,
        "dataset_kwargs": {"data_files": files, "cache_dir": str(directory / "cache")},
        "num_fewshot": num_fewshot,
    }
    task = ConfigurableTask(config=config)
    task.build_all_requests(limit=None, rank=0, world_size=1, **how)
    return task


@pytest.mark.parametrize("num_fewshot", [0, 5])
def test_chats_equal_those_of_the_real_task(doctor, tmp_path, tokenizer, num_fewshot):
    """With --apply_chat_template: shots and question are one turn; a turn a shot, the default there, is refused by Gemma's template."""
    from medkor_jax.data.chat import ChatTemplate, render

    questions, shots = doctor
    chat = ChatTemplate(GEMMA3.read_text("utf-8"), with_turns(tokenizer))
    task = harness_task(
        questions, shots, tmp_path, num_fewshot, apply_chat_template=True, fewshot_as_multiturn=False,
        tokenizer_name="gemma3", chat_template=lambda said, add_generation_prompt: render(chat.template, said, opens=add_generation_prompt),
    )  # fmt: skip
    ours = harness.requests(questions, shots[:num_fewshot], chat)
    assert [request.context for request in ours] == [i.args[0] for i in task.instances]
    # over there a text that begins with <bos> is given no second one
    assert all(request.token_ids.count(tokenizer.bos_id) == 1 for request in ours)
    assert ours[0].token_ids.count(chat.turn_end[0]) == 1


@pytest.mark.parametrize("num_fewshot", [0, 5])
def test_contexts_equal_those_of_the_real_task(doctor, tmp_path, tokenizer, num_fewshot):
    questions, shots = doctor
    # Leading and trailing space around a stem, which the task strips, does not occur in these rows.
    questions = [
        dataclasses.replace(questions[0], question=" \n" + questions[0].question + "  "),
        *questions[1:],
    ]
    task = harness_task(questions, shots, tmp_path, num_fewshot)
    ours = harness.requests(questions, shots[:num_fewshot], Plain(tokenizer))
    theirs = [instance.args[0] for instance in task.instances]
    assert len(theirs) == 164
    assert [request.context for request in ours] == theirs

    settings = task.instances[0].args[1]
    assert (tuple(settings["until"]), settings["max_gen_toks"]) == (
        harness.STOP,
        harness.MAX_NEW_TOKENS,
    )
    assert settings["do_sample"] is False


def test_rows_reach_the_prompt_unchanged(doctor, shared_data):
    """What the task would read from the file itself: no option is stripped, no "None" lost on the way."""
    import csv

    with open(
        shared_data / "kormedmcqa" / "doctor" / "valid.csv", encoding="utf-8", newline=""
    ) as file:
        rows = list(csv.DictReader(file))
    for question, row in zip(doctor[0], rows, strict=True):
        expected = (
            row["question"].strip()
            + "".join(f"\n{letter}. {row[letter]}" for letter in "ABCDE")
            + "\n정답："
        )
        assert harness.context(question) == expected
        assert answer_text(question) == f" {row['answer']}"


def test_shots_carry_their_answers_and_a_blank_line(make_question):
    shot, asked = make_question(1, n_options=2, answer=1), make_question(2, n_options=3)
    assert harness.context(asked, [shot]) == (
        "문항 1은?\nA. 선택 1-0\nB. 선택 1-1\n정답： B\n\n"
        "문항 2은?\nA. 선택 2-0\nB. 선택 2-1\nC. 선택 2-2\n정답："
    )  # fmt: skip
    assert harness.context(make_question(3, n_options=2, language="en")).endswith(
        "B. choice 3-1\nAnswer:"
    )


def test_prompt_starts_with_bos_and_is_cut_from_the_left(make_question, tokenizer):
    question = make_question(1)
    whole = tokenizer.encode(harness.context(question))
    (request,) = harness.requests(
        [question], [], Plain(tokenizer), max_positions=len(whole) + 1 + 7, max_new_tokens=7
    )
    assert list(request.token_ids) == [tokenizer.bos_id, *whole] and not request.truncated
    (request,) = harness.requests(
        [question], [], Plain(tokenizer), max_positions=len(whole) + 6, max_new_tokens=7
    )
    assert list(request.token_ids) == whole[1:] and request.truncated
    with pytest.raises(ValueError, match="1024 positions"):
        harness.requests([question], [], Plain(tokenizer), max_positions=1024)


def test_prompt_ids_equal_those_of_the_harness_model_class(make_question):
    """HFLM on a Gemma tokenizer: <bos> by the tokenizer itself, left cut of the finished ids."""
    huggingface = pytest.importorskip(
        "lm_eval.models.huggingface", reason="lm-eval is not installed"
    )
    transformers = pytest.importorskip("transformers")
    import tokenizers

    texts = [harness.context(make_question(i), [make_question(9)]) for i in range(2)]
    vocabulary = {
        piece: i
        for i, piece in enumerate(["<pad>", "<eos>", "<bos>", *sorted(set("".join(texts)))])
    }
    backend = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, []))
    backend.post_processor = tokenizers.processors.TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", vocabulary["<bos>"])]
    )
    reference = transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<bos>", eos_token="<eos>", pad_token="<pad>"
    )

    class Characters:
        bos_id = vocabulary["<bos>"]

        def encode_batch(self, texts):
            return [[vocabulary[character] for character in text] for text in texts]

    class Model(huggingface.HFLM):
        def __init__(self):  # only what encoding reads; no weights
            self.tokenizer, self.add_bos_token, self.backend = reference, None, "causal"
            self._max_length = 40

        prefix_token_id = vocabulary["<bos>"]

    model = Model()
    for limit in (None, 25):
        ours = harness.requests(
            [make_question(i) for i in range(2)], [make_question(9)], Plain(Characters()),
            max_positions=limit and limit + 7, max_new_tokens=7,
        )  # fmt: skip
        assert [list(r.token_ids) for r in ours] == [
            model.tok_encode(t, left_truncate_len=limit) for t in texts
        ]


def test_text_is_cut_as_the_harness_cuts_it():
    theirs = pytest.importorskip("lm_eval.models.utils", reason="lm-eval is not installed")
    for text in (
        " B",
        " B\n\nQ: C",
        "B. 설명",
        "Q:",
        "a</s>b.",
        "가\n나<|im_end|>\n\n다",
        "\n\n",
        "1.5\n",
    ):
        assert harness.cut_at_stop(text) == theirs.postprocess_generated_text(
            text, list(harness.STOP), None
        )
