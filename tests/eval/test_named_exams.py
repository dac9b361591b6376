"""Exams by name are asked as lm-evaluation-harness 0.4.13 asks them: the same texts, without and with a chat template."""

import json
import pathlib
import shutil

import numpy as np
import pytest

from medkor_jax.commands import eval as eval_command
from medkor_jax.commands.eval import evaluate_file
from medkor_jax.commands.exam_parts import read_parts, usual
from medkor_jax.data.chat import ChatTemplate, render
from medkor_jax.data.named_exams import MMLU_MEDICAL, NAMED
from medkor_jax.data.question import LETTERS, example, prompt
from medkor_jax.data.rows import Source
from medkor_jax.data.source import is_hub_id
from medkor_jax.data.sources import load_questions
from medkor_jax.data.style import Plain
from medkor_jax.eval import harness
from medkor_jax.eval.asked import contexts_digest
from medkor_jax.io.embedded_model import EMBEDDED_MODEL
from medkor_jax.io.export_tokenizer import write_tokenizer
from medkor_jax.io.models import open_model
from medkor_jax.run.building import build
from medkor_jax.run.phases import ConfigError, Exam

from .test_harness import GEMMA3, with_turns

# (question, options, place of the right one), of this file's own; with what a form may lose: spaces, braces, marks, lines.
ASKED = [
    ("Which vitamin prevents scurvy?", ("A", "B12", "C", "D"), 2),
    (" \nA 4-year-old {{child}} limps.  ", ("Perthes' disease ", "rickets", "{x}", "None"), 0),
    ("Which is true?\n1. all\n2. none", ("1 only", "2 only", "both", "neither\n"), 3),
    ("체온이 37.5℃인 환자는?", ("정상", "미열", "고열", "저체온"), 1),
]
TASKS = {
    "medqa": "medqa/medqa.yaml",
    "medmcqa": "medmcqa/medmcqa.yaml",
    **{f"mmlu-medical/{subject}": f"mmlu/default/mmlu_{subject}.yaml" for subject in MMLU_MEDICAL},
}


def hub_rows(name, subject):
    """The rows as the hub's data set has them that the exam's name stands for."""
    for number, (question, options, at) in enumerate(ASKED):
        if name == "medqa":
            lettered = dict(zip("ABCD", options))
            yield dict(
                question=question,
                options=lettered,
                answer=options[at],
                answer_idx="ABCD"[at],
                meta_info="step1",
            )
        elif name == "medqa-5":
            listed = [dict(key=k, value=v) for k, v in zip("ABCDE", (*options, "all of them"))]
            yield dict(
                question=question,
                options=listed,
                answer=options[at],
                answer_idx="ABCD"[at],
                meta_info="step1",
            )
        elif name == "medmcqa":
            lettered = {f"op{letter}": option for letter, option in zip("abcd", options)}
            yield dict(
                id=f"q{number}",
                question=question,
                **lettered,
                cop=at,
                choice_type="single",
                exp=None,
            )
        elif name == "mmlu-medical":
            yield dict(question=question, subject=subject, choices=list(options), answer=at)
        else:
            lettered = dict(zip("ABCDE", (*options, "모두")))
            yield dict(subject=subject, year=2020, period=1, q_number=number + 1, question=question, **lettered, answer=at + 1, cot="")  # fmt: skip


def task_rows(name, subject):
    """The rows as the data set has them that the harness's task reads, which for MedQA is another."""
    if name != "medqa":
        return list(hub_rows(name, subject))
    return [
        dict(sent1=question, sent2="", label=at, **{f"ending{i}": o for i, o in enumerate(options)})
        for question, options, at in ASKED
    ]


def write(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
    return str(path)


def write_hub(place):
    """Writes what the names stand for below `place`: the working directory in which the hub's ids are directories."""
    for name, named in NAMED.items():
        card = []
        for subset in named.subsets or ("",):
            for split in filter(None, (named.split, named.fewshot)):
                file = pathlib.Path(subset or "data") / f"{split}.jsonl"
                write(place / named.path / file, hub_rows(name, subset))
                files = [dict(split=split, path=file.as_posix())]
                card.append(dict(config_name=subset or "default", data_files=files))
        merged = {}
        for one in card:
            merged.setdefault(one["config_name"], []).extend(one["data_files"])
        said = [dict(config_name=config, data_files=files) for config, files in merged.items()]
        (place / named.path / "README.md").write_text(
            f"---\n{json.dumps(dict(configs=said))}\n---\n"
        )


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A working directory in which the ids that the names stand for are directories with those rows."""
    import datasets

    write_hub(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")
    monkeypatch.setenv("MEDKOR_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def harness_task(name, subject, directory, num_fewshot, **how):
    """The real task, reading those rows instead of the hub."""
    lm_eval = pytest.importorskip("lm_eval", reason="lm-eval is not installed")
    if lm_eval.__version__ != "0.4.13":
        pytest.skip(f"lm-eval {lm_eval.__version__} is installed; this project reproduces 0.4.13")
    from lm_eval.api.task import ConfigurableTask
    from lm_eval.tasks._yaml_loader import load_yaml

    file = (
        pathlib.Path(lm_eval.__file__).parent
        / "tasks"
        / TASKS[f"{name}/{subject}" if subject else name]
    )
    config = {k: v for k, v in load_yaml(file).items() if k != "include"}
    splits = {
        config.get(f"{split}_split") for split in ("training", "validation", "test", "fewshot")
    } - {None}
    files = {
        split: write(directory / f"{split}.jsonl", task_rows(name, subject)) for split in splits
    }
    reads = {"data_files": files, "cache_dir": str(directory / "cache")}
    config |= dict(
        dataset_path="json", dataset_name=None, dataset_kwargs=reads, num_fewshot=num_fewshot
    )
    task = ConfigurableTask(config=config)
    task.build_all_requests(limit=None, rank=0, world_size=1, **how)
    return task


@pytest.mark.parametrize("is_chat", [False, True], ids=["plain", "chat"])
@pytest.mark.parametrize("num_fewshot", [0, 2])
@pytest.mark.parametrize("name", TASKS)
def test_prompts_equal_those_of_the_real_task(hub, tokenizer, name, num_fewshot, is_chat):
    name, _, subject = name.partition("/")
    if num_fewshot and name != "mmlu-medical":
        pytest.skip("its shots are drawn at random over there")
    how, style = {}, Plain(tokenizer)
    if is_chat:
        style = ChatTemplate(GEMMA3.read_text("utf-8"), with_turns(tokenizer))
        how = dict(
            apply_chat_template=True, fewshot_as_multiturn=False, tokenizer_name="gemma3",
            chat_template=lambda said, add_generation_prompt: render(style.template, said, opens=add_generation_prompt),
        )  # fmt: skip
    task = harness_task(name, subject, hub / "theirs", num_fewshot, **how)
    mode, split, usual_shots = usual(name)
    assert (mode, usual_shots) == ("letter", 0)
    (part,) = read_parts(name, split, subset=subject, n_shots=num_fewshot)
    ours = harness.requests(part.questions, part.shots, style)
    theirs = [instance.args for instance in task.instances]
    # over there an instance a letter: the context, and what its likelihood is asked of
    assert [request.context for request in ours for _ in range(4)] == [
        context for context, _ in theirs
    ]
    answers = ["A", "B", "C", "D"] if is_chat else [" A", " B", " C", " D"]
    assert [letter for _, letter in theirs] == answers * len(ASKED)
    assert [LETTERS[q.answer] for q in part.questions] == [
        LETTERS[task.doc_to_target(doc)] for doc in task.test_docs()
    ]


def test_a_name_brings_what_belongs_to_it_and_says_less_than_the_source():
    source = Source("english", "exam", "medqa", split="train")
    assert (source.path, source.split, source.language) == (
        "GBaker/MedQA-USMLE-4-options",
        "train",
        "en",
    )
    assert (source.asked_as, source.licence) == ("medqa", "CC BY 4.0")
    assert Source("english", "exam", "medqa", asked_as="medmcqa").asked_as == "medmcqa"
    assert Source("m", "exam", "medmcqa").answers_from == 0
    assert Source("k", "exam", "kormedmcqa").subset == "doctor"
    anatomy = Source("m", "exam", "mmlu-medical", subset="anatomy")
    assert (anatomy.path, anatomy.subset, anatomy.asked_as) == (
        "cais/mmlu",
        "anatomy",
        "mmlu/anatomy",
    )
    assert Source.from_json(json.loads(json.dumps(anatomy.settings()))) == anatomy


def test_a_config_names_an_exam_by_its_path():
    """It is the hub's data set from there on: what fetches, pins, checks licences and records sees no other name."""
    said = {"source": {"name": "english", "kind": "exam", "path": "medmcqa", "split": "validation"}}
    exam = build(Exam, said, "config.exams.english")
    assert (exam.source.path, exam.source.asked_as) == ("openlifescienceai/medmcqa", "medmcqa")
    assert is_hub_id(exam.source.path) and exam.source.answers_from == 0
    with pytest.raises(
        ConfigError, match="config.exams.english.source: .*set subset to one of anatomy"
    ):
        build(Exam, {"source": said["source"] | {"path": "mmlu-medical"}}, "config.exams.english")


@pytest.mark.parametrize(
    "wrong, words",
    [
        (dict(path="mmlu-medical"), "has 6 subsets, a source each: set subset to one of anatomy"),
        (
            dict(path="mmlu-medical", subset="law"),
            "subset is 'law' of cais/mmlu, expected one of anatomy",
        ),
        (dict(path="medqa", subset="doctor"), "expected none: it has one part"),
        (
            dict(path="x.csv", asked_as="medqaa"),
            "asked_as is 'medqaa', expected '' or one of 'medqa'",
        ),
        (dict(path="x.csv", asked_as="mmlu"), "'mmlu/SUBJECT' such as 'mmlu/anatomy'"),
    ],
)
def test_what_is_no_exam_by_name_is_refused(wrong, words):
    with pytest.raises(ValueError, match=words):
        Source("m", "exam", **wrong)


def test_a_form_is_no_part_of_the_question_but_of_what_is_asked(hub, tokenizer):
    """A stage that trains on it is taught by the same prompt; its digest is that of the prompts."""
    plain, named = (
        load_questions(Source("m", "exam", path, split="test", language="en"), drop_bad=False).rows
        for path in ("GBaker/MedQA-USMLE-4-options", "medqa")
    )
    assert [*map(repr, plain)] == [*map(repr, named)]
    assert example(named[0]).parts[0][0] == prompt(named[0]) != prompt(plain[0])
    style = Plain(tokenizer)
    assert contexts_digest(plain, "letter", (), style) != contexts_digest(
        named, "letter", (), style
    )
    mmlu, other = (
        load_questions(
            Source("m", "exam", "mmlu-medical", split="test", subset=s), drop_bad=False
        ).rows
        for s in ("anatomy", "college_biology")
    )
    assert contexts_digest(mmlu, "letter", (), style) != contexts_digest(other, "letter", (), style)
    assert contexts_digest(mmlu, "cloze", (), style) == contexts_digest(other, "cloze", (), style)


def test_several_subjects_are_one_exam_with_a_score_each(hub, tiny_base_dir, capsys):
    report = evaluate_file(str(tiny_base_dir), "mmlu-medical", limit=2)
    assert (report.mode, report.shots, report.split) == ("letter", 0, "test")
    found = [(s.exam, s.n) for s in report.scores if s.group == "exam"]
    assert found == [(f"mmlu-medical/{subject}", 2) for subject in MMLU_MEDICAL]
    assert report.overall.n == 12


def test_shots_are_those_of_their_own_subject(hub):
    mode, split, n_shots = usual("kormedmcqa")
    assert (mode, split, n_shots) == ("harness", "test", 5)
    assert usual("kormedmcqa", mode="letter") == ("letter", "test", 0)
    parts = read_parts("kormedmcqa", split, subset="all", n_shots=3)
    for part, subject in zip(parts, NAMED["kormedmcqa"].subsets, strict=True):
        assert {q.exam for q in (*part.questions, *part.shots)} == {f"kormedmcqa/{subject}"}
        assert len(part.shots) == 3
    with pytest.raises(ValueError, match="no few-shot file is named; give --fewshot"):
        read_parts("medqa", "test", n_shots=1)
    five = read_parts("medqa-5", "test")[0].questions
    assert prompt(five[0]).startswith("Question: Which") and prompt(five[0]).endswith(
        "E. all of them\nAnswer:"
    )


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A Gemma 3 of random numbers with the real vocabulary and a chat template, as transformers writes it."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    directory = tmp_path_factory.mktemp("small") / "it"
    config = transformers.Gemma3TextConfig(
        vocab_size=262144, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=8, query_pre_attn_scalar=8, sliding_window=64, max_position_embeddings=2048,
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.Gemma3ForCausalLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.3)
    model.save_pretrained(directory)
    write_tokenizer(open_model(EMBEDDED_MODEL).tokenizer, directory, max_positions=2048)
    (directory / "chat_template.jinja").write_text(GEMMA3.read_text("utf-8"), "utf-8")
    return directory


SLOW = [
    ("medmcqa", "plain"),
    ("medmcqa", "chat"),
    ("medqa", "plain"),
    ("mmlu-medical/anatomy", "plain"),
]


@pytest.mark.parametrize(
    "name, style",
    [
        ("medqa", "chat"),
        ("mmlu-medical/anatomy", "chat"),
        *(pytest.param(*one, marks=pytest.mark.slow) for one in SLOW),
    ],
)
def test_letters_and_their_likelihoods_are_those_of_the_real_task(hub, small, name, style):
    lm_eval = pytest.importorskip("lm_eval", reason="lm-eval is not installed")
    from lm_eval.models.huggingface import HFLM

    name, _, subject = name.partition("/")
    task = harness_task(name, subject, hub / "theirs", 0)
    model = HFLM(pretrained=str(small), dtype="float32", device="cpu", batch_size=1)
    asked = dict(apply_chat_template=True, fewshot_as_multiturn=False) if style == "chat" else {}
    found = lm_eval.evaluate(model, {"it": task}, bootstrap_iters=0, **asked)
    samples = sorted(found["samples"]["it"], key=lambda sample: sample["doc_id"])
    theirs = np.array([[nats for nats, _ in sample["filtered_resps"]] for sample in samples])
    report = evaluate_file(str(small), name, subset=subject, style=style)
    ours = np.log([answer.probabilities for answer in report.answers])
    normalised = theirs - np.log(np.exp(theirs).sum(axis=1, keepdims=True))
    np.testing.assert_allclose(ours, normalised, atol=2e-4)
    assert np.ptp(normalised, axis=1).min() > 0.1  # the letters are told apart
    assert report.overall.accuracy == found["results"]["it"]["acc,none"]


def test_a_translator_is_put_no_exam_and_that_is_said_before_its_weights_are_read(
    small, tmp_path, monkeypatch
):
    directory = shutil.copytree(small, tmp_path / "translator")
    template = (GEMMA3.parent / "translator.jinja").read_text("utf-8")
    (directory / "chat_template.jinja").write_text(template, "utf-8")
    monkeypatch.setattr(eval_command, "open_scorer", lambda *_, **__: pytest.fail("read"))
    with pytest.raises(ValueError, match="a translator's .* set style to 'plain'"):
        evaluate_file(str(directory), "embedded", language="en", style="chat", limit=1)
