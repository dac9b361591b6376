import itertools

from medkor_jax.bench import text_source
from medkor_jax.data.language import has_hangul
from medkor_jax.data.rows import Source
from medkor_jax.data.sources import load_examples, load_questions


def test_the_seed_decides_every_byte_and_a_larger_source_begins_with_the_smaller(tmp_path):
    for name, megabytes, seed in (("a", 0.3, 0), ("b", 0.3, 0), ("c", 0.6, 0), ("d", 0.3, 1)):
        text_source.write(tmp_path / f"{name}.jsonl", megabytes, seed)
    a, b, c, d = ((tmp_path / f"{name}.jsonl").read_bytes() for name in "abcd")
    assert a == b == c[: len(a)] and 0.3e6 <= len(a) < 0.31e6 and len(c) >= 0.6e6 and d != a
    exams = [(tmp_path / f"{name}.exam.jsonl").read_bytes() for name in "abcd"]
    assert exams[0] == exams[1] == exams[2] != exams[3]


def test_rows_are_unlike_each_other_and_hold_what_real_ones_do(tmp_path):
    exam = text_source.write(tmp_path / "a.jsonl", 1)
    texts = [row.parts[0][0] for row in load_examples(Source("a", "text", str(tmp_path / "a.jsonl")), drop_bad=False).rows]
    sizes = sorted(len(text.encode()) for text in texts)
    assert sizes[len(sizes) // 20] > 900 and sizes[-len(sizes) // 20] < 4500
    lines = list(itertools.chain.from_iterable(text.split("\n") for text in texts))
    assert len(set(lines)) > 0.95 * len(lines)
    assert 0.03 < sum(map(has_hangul, texts)) / len(texts) < 0.2 and 0.1 < sum(not text.isascii() for text in texts) / len(texts) < 0.4
    questions = load_questions(Source("exam", "exam", str(exam)), drop_bad=False).rows
    assert len(questions) == 300 == len({question.question for question in questions})
