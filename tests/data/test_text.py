import pytest

from medkor_jax.data.rows import BadDataError, Source
from medkor_jax.data.sources import load_examples


def load(path, kind, *, drop_bad=False, **settings):
    return load_examples(Source("s", kind, path, **settings), drop_bad=drop_bad)


def test_text_joins_columns_and_all_of_it_carries_loss(write_jsonl):
    path = write_jsonl("a.jsonl", [{"question": "What is it? ", "answer": "It is 열.", "url": ""}])
    (example,) = load(path, "text").rows
    assert example.parts == (("What is it?\nIt is 열.", True),)
    assert (example.id, example.language, example.splittable, example.eos) == (
        "s/0",
        "en",
        True,
        True,
    )
    assert load(path, "text", fields=("answer",), language="ko").rows[0].parts == (
        ("It is 열.", True),
    )
    assert load(path, "text", language="ko").rows[0].language == "ko"


def test_lines_of_a_text_file_are_documents(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes("첫 줄\r\n\r\n둘째 줄".encode())
    assert [(e.id, e.parts[0][0]) for e in load(str(path), "text").rows] == [
        ("s/0", "첫 줄"),
        ("s/2", "둘째 줄"),
    ]


def test_chat_carries_loss_where_the_assistant_speaks(write_jsonl):
    turns = [
        ("system", "Be brief."),
        ("user", "Fever?"),
        ("assistant", "Rest."),
        ("user", "How long?"),
        ("assistant", "A day."),
    ]
    path = write_jsonl(
        "a.jsonl", [{"messages": [{"role": role, "content": text} for role, text in turns]}]
    )
    (example,) = load(path, "chat").rows
    assert example.parts == (
        ("Be brief.\n", False),
        ("Fever?\n", False),
        ("Rest.", True),
        ("\nHow long?\n", False),
        ("A day.", True),
    )
    (example,) = load(
        write_jsonl("b.jsonl", [{"input": "열이 나요.", "output": "쉬세요."}]), "chat"
    ).rows
    assert (
        example.parts == (("열이 나요.\n", False), ("쉬세요.", True)) and example.language == "ko"
    )


@pytest.mark.parametrize(
    "messages, reason",
    [
        ([{"role": "user", "content": "Hello?"}], "does not end in an assistant's turn"),
        (
            [{"role": "user", "content": "Hello?"}, {"role": "assistant", "content": " "}],
            "the assistant's turn is empty",
        ),
        (
            [{"role": "doctor", "content": "Hello?"}],
            "role doctor, expected system, user or assistant",
        ),
        ("Hello?", "messages is not a list"),
    ],
)
def test_bad_chats(write_jsonl, messages, reason):
    with pytest.raises(BadDataError, match=reason):
        load(write_jsonl("a.jsonl", [{"messages": messages}]), "chat")


def test_wrong_columns(write_jsonl):
    with pytest.raises(
        BadDataError,
        match="no column 'text' \\(nearest: 'texts'\\); the columns are 'texts', 'title'",
    ):
        load(write_jsonl("a.jsonl", [{"texts": "x", "title": "y"}]), "text")
    with pytest.raises(BadDataError, match="no column 'body'"):
        load(write_jsonl("a.jsonl", [{"text": "x"}]), "text", fields=("body",))


def test_embedded_texts():
    both = load("embedded", "text").rows
    korean = load("embedded", "text", language="ko").rows
    assert {e.language for e in both} == {"ko", "en"} and {e.language for e in korean} == {"ko"}
    assert load("embedded", "text", limit=3).rows == both[:3]
    with pytest.raises(ValueError, match="nothing of kind 'chat' is embedded"):
        load("embedded", "chat")


def test_real_texts_load_whole(shared_data):
    def counts(path, kind, **settings):
        rows = load(str(shared_data / path), kind, **settings).rows
        return len(rows), sum(e.language == "ko" for e in rows)

    assert counts("english_text/medquad-5k.jsonl.gz", "text") == (5000, 0)
    assert counts("korean_text/genmedgpt-5k-ko.csv", "text") == (5451, 5451)
    assert counts("korean_text/genmedgpt-5k-ko.csv", "chat") == (5451, 5451)
    assert counts("korean_text/korquad-dev-paragraphs.jsonl", "text") == (964, 964)
    assert counts("english_exam/medqa-train-cot-458.jsonl", "chat") == (458, 0)
    loaded = load(str(shared_data / "kormedmcqa_cot/train-r1.jsonl.gz"), "chat", drop_bad=True)
    assert len(loaded.rows) == 2000 and len(loaded.bad) == 4
