import pytest

from medkor_jax.data import embedded
from medkor_jax.data.pairs import Pair, load_pairs, translation_prompt
from medkor_jax.data.rows import BadDataError, Source
from medkor_jax.data.sources import load_examples


def load(path, **settings):
    return load_examples(Source("s", "translation", str(path), **settings), drop_bad=False).rows


def test_both_directions_with_loss_on_the_target(tmp_path):
    path = tmp_path / "a.tsv"
    path.write_text("He has a fever.\t그는 열이 난다.\tCC-BY\n", "utf-8")
    into_korean, into_english = load(path)
    assert into_korean.parts == (("English: He has a fever.\n한국어:", False), (" 그는 열이 난다.", True))
    assert into_english.parts == (("한국어: 그는 열이 난다.\nEnglish:", False), (" He has a fever.", True))
    assert [(e.id, e.language, e.splittable) for e in (into_korean, into_english)] == [
        ("s/0/en-ko", "ko", False), ("s/0/ko-en", "en", False)]


def test_a_row_of_empty_cells_in_quotes_is_a_blank_line(tmp_path):
    path = tmp_path / "a.tsv"
    path.write_text('"One."\t"하나."\n""\t""\n"Two."\t"둘."\n', "utf-8")
    assert [e.parts[1][0] for e in load(path)] == [" 하나.", " One.", " 둘.", " Two."]


def test_every_form_gives_the_same_pairs(tmp_path, write_jsonl):
    expected = None
    (tmp_path / "tsv.txt").write_text("One.\t하나.\nTwo.\t둘.\n", "utf-8")
    (tmp_path / "turned.tsv").write_text("하나.\tOne.\n둘.\tTwo.\n", "utf-8")
    (tmp_path / "twin.en").write_text("One.\nTwo.\n", "utf-8")
    (tmp_path / "twin.ko").write_text("하나.\n둘.\n", "utf-8")
    write_jsonl("a.jsonl", [{"en": "One.", "ko": "하나."}, {"en": "Two.", "ko": "둘."}])
    for name in ("tsv.txt", "turned.tsv", "twin", "twin.en", "twin.ko", "a.jsonl"):
        found = load(tmp_path / name)
        expected = expected or found
        assert len(found) == 4 and found == expected, name
    path = write_jsonl("b.jsonl", [{"title": "하나.", "title_en": "One."}, {"title": "둘.", "title_en": "Two."}])
    assert load(path, fields=("title_en", "title")) == expected
    assert load(tmp_path / "twin", limit=1) == expected[:2]


def test_what_does_not_pair_up_is_refused(tmp_path, write_jsonl):
    (tmp_path / "a.en").write_text("One.\n\nThree.\n", "utf-8")
    with pytest.raises(BadDataError, match="its twin .*a.ko is not there"):
        load(tmp_path / "a.en")
    (tmp_path / "a.ko").write_text("하나.\n둘.\n", "utf-8")
    with pytest.raises(BadDataError, match="3 lines, but .*a.ko has 2"):
        load(tmp_path / "a")
    (tmp_path / "a.ko").write_text("하나.\n둘.\n셋.\n", "utf-8")
    with pytest.raises(BadDataError, match="a.en, row 2: English sentence is empty"):
        load(tmp_path / "a.ko")
    (tmp_path / "b.tsv").write_text("One. 하나.\n", "utf-8")
    with pytest.raises(BadDataError, match="row 1: no tab"):
        load(tmp_path / "b.tsv")
    with pytest.raises(BadDataError, match="no column 'ko'"):
        load(write_jsonl("c.jsonl", [{"en": "One.", "kor": "하나."}]))


def test_embedded_pairs():
    assert len(load("embedded", limit=3)) == 6


def test_embedded_pairs_are_held_out_by_fact():
    found = {split: {e.id.rsplit("/", 1)[0] for e in load("embedded", subset=split)} for split in embedded.SPLITS}
    assert set().union(*found.values()) == {e.id.rsplit("/", 1)[0] for e in load("embedded")}
    for split, names in found.items():
        assert {name.removeprefix("embedded/pair/").rsplit("/", 1)[0] for name in names} == {
            fact.id for fact in embedded.facts() if fact.split == split}
    with pytest.raises(ValueError, match="no split 'dev'"):
        load("embedded", subset="dev")


def test_pairs_to_judge_with_are_those_of_the_examples(tmp_path):
    (tmp_path / "a.tsv").write_text("One.\t하나.\n하나\n", "utf-8")
    source = Source("s", "translation", str(tmp_path / "a.tsv"))
    with pytest.raises(BadDataError, match="row 2: no tab"):
        load_pairs(source, drop_bad=False)
    loaded = load_pairs(source, drop_bad=True)
    assert loaded.rows == [Pair("s/0", "One.", "하나.")] and len(loaded.bad) == 1
    into_korean, into_english = load_examples(source, drop_bad=True).rows
    assert into_korean.parts[0][0] == translation_prompt("One.", "en", "ko")
    assert into_english.parts[0][0] == translation_prompt("하나.", "ko", "en")
    with pytest.raises(ValueError, match="of kind 'text', expected 'translation'"):
        load_pairs(Source("s", "text", "a.tsv"), drop_bad=True)


def test_real_pairs_load_whole(shared_data):
    for path, count in (("tatoeba-kor.txt", 3723), ("jhe-dev", 720), ("news-dev.ko", 1000)):
        examples = load(shared_data / "parallel_ko_en" / path)
        assert len(examples) == 2 * count
        assert sum(e.language == "ko" for e in examples) == count
    assert len(load(shared_data / "terms_ko_en/kcd-1000.json", fields=("title_en", "title"))) == 2000


def test_a_header_that_is_not_known_is_no_pair(tmp_path):
    (tmp_path / "a.tsv").write_text("source\ttarget\nOne.\t하나.\n", "utf-8")
    (tmp_path / "b.en").write_text("en\nOne.\n", "utf-8")
    (tmp_path / "b.ko").write_text("ko\n하나.\n", "utf-8")
    (tmp_path / "c.tsv").write_text("DNA\tDNA\nOne.\t하나.\n", "utf-8")
    for name in ("a.tsv", "b"):
        with pytest.raises(BadDataError, match="row 1: .* look like the names of columns"):
            load(tmp_path / name)
    assert len(load(tmp_path / "c.tsv")) == 4
