"""A model's own thinking: what is thought and what is said, and the ids of a thought that code wrote, beside transformers'."""

import dataclasses
import io
import pathlib

import pytest
import sentencepiece
import transformers

from medkor_jax.data import embedded
from medkor_jax.data.chat import ChatTemplate
from medkor_jax.data.contents import content_digest
from medkor_jax.data.packing import encode
from medkor_jax.data.reasoning import (
    ReasoningFormat,
    load,
    reasoned_example,
    reasoned_text,
    reasoning_prompt,
)
from medkor_jax.data.rows import Example, Source
from medkor_jax.data.style import Plain
from medkor_jax.data.thinking import (
    SWITCH,
    Thought,
    check_thinking,
    count_thought,
    hide_thought,
    split_thought,
    switch,
)
from medkor_jax.data.tokenizer import Tokenizer
from medkor_jax.io.export_tokenizer import write_tokenizer

GEMMA3 = (pathlib.Path(__file__).parent / "chat" / "gemma3.jinja").read_text("utf-8")
OPENS, CLOSES = "<unused94>", "<unused95>"
OWN = ReasoningFormat("<unused94>thought", "<unused95>")


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """A small vocabulary with turns and the marks of a thought, as ours and as transformers reads its export."""
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([text for code in ("en", "ko") for _, text in embedded.texts(code)]), model_writer=written, model_type="bpe",
        vocab_size=900, byte_fallback=True, character_coverage=0.98, normalization_rule_name="identity", add_dummy_prefix=False,
        remove_extra_whitespaces=False, pad_id=0, eos_id=1, bos_id=2, unk_id=3, pad_piece="<pad>", eos_piece="<eos>", bos_piece="<bos>",
        control_symbols=["<start_of_turn>", "<end_of_turn>", OPENS, CLOSES], user_defined_symbols=["\n", "\n\n", "<b>"], minloglevel=2,
    )  # fmt: skip
    ours = Tokenizer.parse_sentencepiece(written.getvalue())
    directory = tmp_path_factory.mktemp("there")
    write_tokenizer(ours, directory, max_positions=4096)
    theirs = transformers.AutoTokenizer.from_pretrained(directory)
    theirs.chat_template = GEMMA3
    return ours, theirs


@pytest.mark.parametrize(
    "text, expected",
    [
        ("C", Thought("", "C", True)),
        (f"{OPENS}thought\nScurvy.\n{CLOSES}C", Thought("Scurvy.", "C", True)),
        (f"{OPENS}no label{CLOSES}\nC", Thought("no label", "\nC", True)),
        (f"A {OPENS}thought\nB{CLOSES}C", Thought("A\nB", "C", True)),
        (f"thought\nB{CLOSES}C", Thought("B", "C", True)),  # the template began the block
        (f"{OPENS}thought\nA{CLOSES}B{OPENS}C{CLOSES}D", Thought("A\nB\nC", "D", True)),
        (f"{OPENS}thought\nthe answer is C", Thought("the answer is C", "", False)),
        (f"{OPENS}thought\nA{CLOSES}B {OPENS}C", Thought("A\nB\nC", "", False)),
        (OPENS, Thought("", "", False)),
    ],
)
def test_what_is_thought_and_what_is_said(text, expected):
    assert split_thought(text) == expected


def test_tokens_are_counted_up_to_the_mark_that_closes(both):
    ours, _ = both
    opens, closes = ours.control_ids[OPENS], ours.control_ids[CLOSES]
    for tokens, n in (
        ([], 0), ([70, 80], 0), ([opens, 70, closes, 80], 3), ([opens, 70, 80], 3), ([70, closes, 80], 2),
        ([opens, 70, closes, 80, opens, 90], 6), ([opens, 70, closes, 80, opens, 90, closes, 90, 90], 7),
    ):  # fmt: skip
        assert count_thought(tokens, ours) == n, tokens


def test_a_thought_is_hidden_from_stop_strings_and_nothing_moves():
    text = f"{OPENS}thought\nOne. Two.\n\n{CLOSES}C. {OPENS}x."
    hidden = hide_thought(text)
    assert len(hidden) == len(text) and hidden.find(".") == text.index("C.") + 1
    assert hidden.find(CLOSES) == text.index(CLOSES) and hidden.count(".") == 1


def test_decoded_text_is_theirs_marks_and_all(both):
    ours, theirs = both
    opens, closes, end = (ours.control_ids[name] for name in (OPENS, CLOSES, "<end_of_turn>"))
    for ids in (
        [opens, *ours.encode("thought\n열이 <b> 🩺"), closes, *ours.encode(" C"), end],
        [*ours.encode("a "), closes, closes, *ours.encode(" b")],
        [opens],
        [],
    ):
        assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True)
    assert ours.decode([opens, *ours.encode("x"), closes, end]) == f"{OPENS}x{CLOSES}"


def test_a_reasoned_answer_in_the_own_form_has_their_ids(both):
    ours, theirs = both
    chat = ChatTemplate(GEMMA3, ours)
    opens, closes = ours.control_ids[OPENS], ours.control_ids[CLOSES]
    for question in embedded.reasonings("train", "ko")[:3] + embedded.reasonings("train", "en")[:3]:
        said = reasoned_text(question, OWN)
        assert said.startswith(f"{OPENS}thought\n") and said[:-1].endswith(CLOSES)
        example = reasoned_example(question, OWN)
        turns = [
            {"role": "user", "content": reasoning_prompt(question)},
            {"role": "assistant", "content": said},
        ]
        encoded = encode(example, chat)
        assert [ours.bos_id, *encoded.tokens] == theirs.apply_chat_template(turns)["input_ids"]
        learnt = encoded.tokens[encoded.loss].tolist()
        assert learnt[0] == opens and learnt.count(closes) == 1
        assert learnt[:-1] == theirs(said, add_special_tokens=False)["input_ids"]
        plain = encode(example, Plain(ours))
        assert plain.tokens[plain.loss].tolist() == [*learnt[:-1], ours.eos_id]


def test_marks_out_of_data_stay_text(both):
    ours, _ = both
    marks = {ours.control_ids[OPENS], ours.control_ids[CLOSES]}
    text = f"{OPENS}thought\nx{CLOSES}C"
    document = Example("talk", (("Which?", False), (text, True)), "en", splittable=False)
    for style in (Plain(ours), ChatTemplate(GEMMA3, ours)):
        assert marks.isdisjoint(encode(document, style).tokens.tolist())
        assert marks.isdisjoint(style.prompt(text)) and marks.isdisjoint(style.answer(text))
        assert not marks.isdisjoint(style.answer(text, marked=True))
    question = embedded.reasonings("train", "en")[0]
    asked = dataclasses.replace(question, question=f"What is {text}?")
    tokens = encode(reasoned_example(asked, OWN), Plain(ours)).tokens.tolist()
    assert [tokens.count(mark) for mark in sorted(marks)] == [1, 1]  # of the answer alone
    usual = reasoned_example(question, ReasoningFormat())
    assert type(usual) is Example and not usual.is_marked


def test_what_was_stored_of_examples_is_what_it_was_and_a_marked_one_is_another():
    question = embedded.reasonings("train", "en")[0]
    marked = reasoned_example(question, OWN)
    same = Example(*(getattr(marked, f.name) for f in dataclasses.fields(Example)))
    assert repr(same).startswith("Example(id=") and "mark" not in repr(same).split("parts")[0]
    assert content_digest([same]) != content_digest([marked]) and same != marked
    assert dataclasses.replace(marked, id="x").is_marked


@pytest.mark.parametrize("mark", [OPENS, CLOSES])
def test_a_rationale_that_holds_a_mark_is_left_out(mark, tmp_path):
    question = dataclasses.replace(
        embedded.reasonings("train", "en")[0], rationale=f"It is {mark} so."
    )
    with pytest.raises(ValueError, match="choose other tags"):
        reasoned_text(question, OWN)
    path = tmp_path / "exam.csv"
    row = "2020,{0},Which?,a,b,c,d,e,2,{1}\n"
    path.write_text(
        "year,q_number,question,A,B,C,D,E,answer,cot\n"
        + row.format(1, f"so {mark} B")
        + row.format(2, "so B")
    )
    loaded = load(Source("s", "reasoning", str(path)), drop_bad=False, form=OWN)
    assert len(loaded.rows) == 1 and any("left out" in note for note in loaded.notes)


@pytest.mark.parametrize(
    "tags", [("<unused94>thought", "<R/>"), ("<R>", "<unused95>"), ("<unused95>", "<unused94>")]
)
def test_half_of_the_own_tags_is_refused(tags):
    with pytest.raises(ValueError, match="the model's own are '<unused94>thought' and"):
        ReasoningFormat(*tags)


def test_a_vocabulary_without_the_marks_is_told(byte_tokenizer):
    with pytest.raises(ValueError, match="no piece '<unused94>' to think with"):
        encode(reasoned_example(embedded.reasonings("train", "en")[0], OWN), Plain(byte_tokenizer))


def test_who_may_think():
    assert switch(0, "plain") == "" and switch(5, "chat") == SWITCH
    with pytest.raises(ValueError, match="'plain' form.*set style to 'chat'"):
        switch(5, "plain")
    for mode in ("letter", "cloze", "cloze_norm"):
        check_thinking(0, mode)
        with pytest.raises(ValueError, match="use mode 'harness' or 'reason'"):
            check_thinking(5, mode)
    check_thinking(5, "reason")
