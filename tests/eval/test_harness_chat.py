"""The real weights, asked by Gemma 3's chat template, here and by lm-evaluation-harness."""

import json
import pathlib

import pytest

from medkor_jax.commands.eval import evaluate_file
from medkor_jax.io.embedded_model import EMBEDDED_MODEL
from medkor_jax.io.export import export_hf
from medkor_jax.io.models import open_model

from .test_harness import GEMMA3, harness_task
from .test_harness import doctor as doctor

N = 50


@pytest.fixture(scope="module")
def chatting(tmp_path_factory) -> pathlib.Path:
    """The embedded 270M as transformers reads it, with the template that instruction-tuned ones come with."""
    directory = tmp_path_factory.mktemp("270m") / "chatting"
    export_hf(open_model(EMBEDDED_MODEL), directory, dtype="float32")
    (directory / "chat_template.jinja").write_text(GEMMA3.read_text("utf-8"), "utf-8")
    return directory


@pytest.mark.slow
@pytest.mark.parametrize("num_fewshot", [0, 5])
def test_texts_and_letters_are_those_of_the_harness(
    chatting, doctor, shared_data, tmp_path, num_fewshot
):
    lm_eval = pytest.importorskip("lm_eval")
    from lm_eval.models.huggingface import HFLM

    questions, shots = doctor
    task = harness_task(questions, shots, tmp_path, num_fewshot)
    model = HFLM(pretrained=str(chatting), dtype="float32", device="cpu", batch_size=1)
    found = lm_eval.evaluate(
        model, {"doctor": task}, limit=N, apply_chat_template=True, fewshot_as_multiturn=False, bootstrap_iters=0
    )  # fmt: skip
    samples = sorted(found["samples"]["doctor"], key=lambda sample: sample["doc_id"])
    exams = shared_data / "kormedmcqa" / "doctor"
    report = evaluate_file(
        str(chatting), str(exams / "valid.csv"), mode="harness", style="chat", limit=N,
        fewshot=str(exams / "fewshot.csv") if num_fewshot else None, n_shots=num_fewshot,
    )  # fmt: skip
    texts = [sample["resps"][0][0] for sample in samples]
    (tmp_path / "texts.json").write_text(
        json.dumps([texts, [a.text for a in report.answers]], ensure_ascii=False)
    )
    assert [answer.text for answer in report.answers] == texts
    letters = [sample["filtered_resps"][0] for sample in samples]
    assert [answer.predicted or "" for answer in report.answers] == [
        letter.strip() for letter in letters
    ]
