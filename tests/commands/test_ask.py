"""One question in the terminal: what streams is what the decoder writes, and the letters follow it."""

import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medkor_jax import cli
from medkor_jax.commands.ask import Asked, answer_table, ask, exam_question, typed_question
from medkor_jax.commands.eval import evaluate_file
from medkor_jax.commands.stream import Stream, goes_in_circles
from medkor_jax.data import embedded
from medkor_jax.data.question import prompt
from medkor_jax.data.reasoning import ReasoningFormat, reasoning_prompt
from medkor_jax.io.models import open_model
from medkor_jax.model.forward import Inputs, forward, project_logits
from medkor_jax.model.params import Params


def written(capture):
    """Returns (write, parts): what `ask` is given, and what it was given."""
    return capture.append, capture


def greedy(directory, text, n):
    """Returns the ids of `text` and n greedy tokens after it, by whole forward passes."""
    model = open_model(directory)
    params = Params(model.base.load(jnp.float32))
    ids = [model.tokenizer.bos_id, *model.tokenizer.encode(text)]
    prompt_length, width = len(ids), len(ids) + n

    @jax.jit
    def logits(tokens):
        positions = jnp.arange(width)[None]
        hidden = forward(
            params,
            model.config,
            Inputs(tokens, positions, jnp.ones_like(tokens), jnp.zeros_like(tokens)),
            dtype=jnp.float32,
        )
        return project_logits(params.base, hidden[0])

    for _ in range(n):
        row = np.zeros((1, width), np.int32)
        row[0, : len(ids)] = ids
        ids.append(int(np.argmax(logits(row)[len(ids) - 1])))
    return model, ids[:prompt_length], ids[prompt_length:]


def test_reasoning_streams_and_letters_follow_it(tiny_base_dir):
    question = embedded.questions("valid", "en")[0]
    parts = []
    asked = ask(str(tiny_base_dir), question, mode="reason", write=parts.append, max_new_tokens=12)
    model, ids, new = greedy(tiny_base_dir, reasoning_prompt(question), 12)
    text = model.tokenizer.decode([i for i in new if i < model.tokenizer.vocab_size])
    assert asked.text == text and not asked.is_closed
    assert "".join(parts) == f"{text} <R/> (not closed by the model)"
    assert len(parts) > 5  # token by token, not at the end

    # The probabilities are those behind what was written and the tag.
    closed = [*ids, *new, *model.tokenizer.encode(" <R/>")]
    params = Params(model.base.load(jnp.float32))
    tokens = jnp.array([closed], jnp.int32)
    inputs = Inputs(
        tokens, jnp.arange(len(closed))[None], jnp.ones_like(tokens), jnp.zeros_like(tokens)
    )
    last = np.asarray(
        project_logits(
            params.base, forward(params, model.config, inputs, dtype=jnp.float32)[0, -1]
        ),
        np.float64,
    )
    letters = last[[model.tokenizer.encode(f" {letter}")[0] for letter in "ABCDE"]]
    np.testing.assert_allclose(
        asked.probabilities, np.exp(letters) / np.exp(letters).sum(), atol=1e-5
    )


def test_a_closed_reasoning_ends_at_its_tag(tiny_base_dir):
    """The tag is chosen from what this model writes anyway: it ends the text, and the letters stand behind it."""
    question = embedded.questions("valid", "en")[0]
    model, _ids, new = greedy(tiny_base_dir, reasoning_prompt(question), 12)
    text = model.tokenizer.decode([i for i in new if i < model.tokenizer.vocab_size])
    at = next(i for i in range(1, len(text)) if text[i].isalnum() and text[i] not in text[:i])
    closing = text[at]
    parts = []
    form = ReasoningFormat("<R>", closing)
    asked = ask(
        str(tiny_base_dir),
        question,
        mode="reason",
        write=parts.append,
        max_new_tokens=12,
        form=form,
    )
    assert asked.is_closed and asked.text == text[:at] and "".join(parts) == text[: at + 1]
    assert sum(asked.probabilities) == pytest.approx(1) and len(asked.probabilities) == 5


def test_letter_mode_is_what_eval_says(tiny_base_dir):
    report = evaluate_file(str(tiny_base_dir), "embedded", mode="letter", language="ko", limit=3)
    question = exam_question("embedded", 3, language="ko")
    asked = ask(str(tiny_base_dir), question, mode="letter", write=pytest.fail)
    np.testing.assert_allclose(asked.probabilities, report.answers[2].probabilities, atol=1e-5)


def test_a_stream_shows_nothing_twice_and_nothing_half():
    parts = []
    stream = Stream(parts.append, ("<R/>",))
    for text in (
        "a",
        "a\ufffd",
        "a\ufffd\ufffd",
        "a열",
        "a열 <",
        "a열 <R",
        "a열 <b",
        "a열 <b <R/",
        "a열 <b ",
    ):
        stream.show(text)
    stream.finish("a열 <b ")
    assert parts == ["a", "열", " ", "<b", " "] and "".join(parts) == "a열 <b "


@pytest.mark.parametrize(
    ("text", "circles"),
    [
        ("It is so. " * 6, True),
        ("First. " + "가나다라마바사 아자차카.\n" * 6, True),
        ("It is so. " * 5, False),
        ("a" * 47, False),  # six times eight are 48
        ("ab" * 24, True),
        ("".join(f"{i}. It is so. " for i in range(9)), False),
        ("", False),
    ],
)
def test_what_goes_in_circles(text, circles):
    assert goes_in_circles(text) is circles
    assert Stream(lambda part: None, ()).show(text) is circles


def test_a_text_in_circles_is_not_written_to_its_end(tiny_base_dir, monkeypatch):
    """The tiny model is made to say one thing again and again."""
    shown, whole = [], Stream.show

    def show(self, text):
        shown.append(text)
        return whole(self, text) or len(shown) == 5

    monkeypatch.setattr(Stream, "show", show)
    question, parts = embedded.questions("valid", "en")[0], []
    asked = ask(str(tiny_base_dir), question, mode="reason", write=parts.append, max_new_tokens=40)
    assert len(shown) == 5 and asked.text == shown[-1] and len(asked.probabilities) == 5


def test_a_typed_question_is_read_from_its_lines():
    read = typed_question("다음 중 옳은 것은?\nA. 간\nB. 폐\nC) 신장\n정답：")
    assert (read.question, read.options, read.language) == (
        "다음 중 옳은 것은?",
        ("간", "폐", "신장"),
        "ko",
    )
    assert typed_question("Which?\n A. one\n B. two\n\n").options == ("one", "two")
    assert typed_question("Vitamin A. and B.") == "Vitamin A. and B."
    assert typed_question("B. two\nA. one") == "B. two\nA. one"  # not in order: no options
    with pytest.raises(ValueError, match="empty"):
        typed_question(" \n정답：")


def test_what_cannot_be_asked_is_said_before_anything_is_loaded():
    with pytest.raises(ValueError, match="this question has none"):
        ask("nowhere", "What?", mode="letter", write=pytest.fail)
    with pytest.raises(ValueError, match="mode 'harness' is unknown"):
        ask("nowhere", "What?", mode="harness", write=pytest.fail)
    with pytest.raises(ValueError, match="questions 1 to 96; row 97"):
        exam_question("embedded", 97, language="en")
    with pytest.raises(ValueError, match="row 0"):
        exam_question("embedded", 0, language="en")


def test_the_table_marks_what_is_chosen_and_the_key():
    question = embedded.questions("valid", "en")[0]
    assert question.answer != 3
    shares = (0.1, 0.2, 0.05, 0.5, 0.15)
    lines = answer_table(question, Asked("", shares, True), has_key=True).splitlines()
    assert [float(re.search(r"([\d.]+)%", line)[1]) for line in lines] == [10, 20, 5, 50, 15]
    assert [line.count("\u2588") for line in lines] == [2, 5, 1, 12, 4]
    assert lines[3].endswith("<- chosen") and lines[question.answer].endswith("<- key")
    assert sum("<-" in line for line in lines) == 2
    assert "key" not in answer_table(question, Asked("", shares, True), has_key=False)


def test_the_command_asks_a_row_a_text_and_standard_input(tiny_base_dir, capsys, monkeypatch):
    import io

    weights = ["ask", "--weights", str(tiny_base_dir)]
    assert (
        cli.main(
            [*weights, "--exam", "embedded", "--language", "ko", "--row", "2", "--mode", "letter"]
        )
        == 0
    )
    out = capsys.readouterr().out
    question = embedded.questions("valid", "ko")[1]
    assert out.startswith(prompt(question)) and "key" in out and out.count("%") == 5
    assert (
        cli.main([*weights, "--question", "Which?\nA. one\nB. two", "--max-new-tokens", "3"]) == 0
    )
    out = capsys.readouterr().out
    assert (
        out.startswith("Which?\nA. one\nB. two\nReasoning:")
        and out.count("%") == 2
        and "key" not in out
    )
    monkeypatch.setattr("sys.stdin", io.StringIO("The patient has\n"))
    assert cli.main([*weights, "--max-new-tokens", "3"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("The patient has") and "%" not in out


def test_the_command_exports_and_asks_the_export(tiny_base_dir, tmp_path, capsys):
    out = tmp_path / "exported"
    assert (
        cli.main(
            [
                "export",
                "--weights",
                str(tiny_base_dir),
                "--to",
                "hf",
                "--out",
                str(out),
                "--dtype",
                "bfloat16",
            ]
        )
        == 0
    )
    assert str(out) in capsys.readouterr().out
    assert json.loads((out / "config.json").read_text())["dtype"] == "bfloat16"
    assert (
        cli.main(
            [
                "ask",
                "--weights",
                str(out),
                "--question",
                "Which?\nA. one\nB. two",
                "--mode",
                "letter",
            ]
        )
        == 0
    )
    assert capsys.readouterr().out.count("%") == 2
    assert (
        cli.main(["export", "--weights", str(tiny_base_dir), "--to", "hf", "--out", str(out)]) == 1
    )
    assert "not empty" in capsys.readouterr().err
    assert (
        cli.main(
            [
                "export",
                "--weights",
                str(tiny_base_dir),
                "--to",
                "peft",
                "--out",
                str(tmp_path / "p"),
            ]
        )
        == 1
    )
    assert "no adapters" in capsys.readouterr().err
