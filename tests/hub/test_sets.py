"""Every public set that a config names is read as it is: its columns, splits and subsets, in small stand-ins."""

import dataclasses
import json
import pathlib

import pytest

from medkor_jax.data.pairs import load_pairs
from medkor_jax.data.rows import BadDataError, Source
from medkor_jax.data.sources import OF_QUESTIONS, load_examples, load_questions
from medkor_jax.run.config_file import load_recipe
from medkor_jax.run.corpora import uses_of

from .standins import standins

CONFIGS = pathlib.Path(__file__).parents[2] / "configs"
RECIPE = load_recipe(str(CONFIGS / "pipeline.py"))
SOURCES = {f"{use.source.kind} {use.source.name}": use.source for use in uses_of(RECIPE)}
STANDINS = standins()


def load(source):
    return (load_questions if source.kind in OF_QUESTIONS else load_examples)(
        source.original, drop_bad=False
    )


def test_no_slot_asks_for_a_file_of_yours():
    assert {source.path for source in SOURCES.values()} <= set(STANDINS)
    assert all(source.licence and source.licence != "set me" for source in SOURCES.values())


@pytest.mark.parametrize("name", SOURCES)
def test_a_source_of_the_pipeline_reads_the_columns_of_its_set(hub, name):
    source = SOURCES[name]
    if source.part:  # a larger share than the config's: the stand-in is small
        source = dataclasses.replace(source, held_share=0.3)
    loaded = load(source)
    rows = STANDINS[source.path].rows[source.subset, source.split]
    assert 0 < len(loaded.rows) <= 2 * len(rows) and not loaded.bad
    if source.part == "train":
        assert len(loaded.rows) > 0.5 * len(rows)
    said = json.dumps(rows, ensure_ascii=False)
    for row in loaded.rows[:3]:
        text = row.question if source.kind in OF_QUESTIONS else row.parts[-1][0]
        assert json.dumps(text.strip().split("\n")[-1], ensure_ascii=False)[1:-1] in said
    assert source.kind == "translation" or {row.language for row in loaded.rows} == {
        source.language
    }


def test_the_keys_of_the_exams_are_those_of_the_set(hub):
    for name, path in (
        ("exam korean", "sean0042/KorMedMCQA"),
        ("exam english", "GBaker/MedQA-USMLE-4-options"),
    ):
        source = SOURCES[name]
        rows = STANDINS[path].rows[source.subset, source.split]
        for question, row in zip(load(source).rows, rows, strict=True):
            right = row.get("answer_idx") or "ABCDE"[row["answer"] - 1]
            assert question.options[question.answer] == (row.get("options") or row)[right]
    assert {len(q.options) for q in load(SOURCES["exam english"]).rows} == {4}


def test_the_reasoning_stands_under_the_names_the_config_gives(hub):
    questions = load(SOURCES["reasoning korean-solutions"]).rows
    rows = STANDINS["ChuGyouk/medical-reasoning-train-kormedmcqa"].rows["", "train"]
    assert len(questions) == len(rows)
    assert questions[0].rationale == f"{rows[0]['thinking'].strip()}\n{rows[0]['response']}"
    lost = dataclasses.replace(SOURCES["reasoning korean-solutions"], rationale=("reasoning",))
    with pytest.raises(BadDataError, match=r"no column 'reasoning'.*'thinking', 'response'"):
        load(lost)


def test_trained_and_held_out_parts_share_no_row(hub):
    parts = {}
    for source in SOURCES.values():
        if source.part:
            parts.setdefault(source.path, {})[source.part] = source
    assert len(parts) == 2 and all(set(both) == {"train", "held_out"} for both in parts.values())
    for both in parts.values():
        one, other = both["train"], both["held_out"]
        # Larger than in the config: the stand-in is small.
        one, other = (
            dataclasses.replace(s, held_share=0.3, weight=1.0, name="s") for s in (one, other)
        )
        both = [set(map(repr, load(source).rows)) for source in (one, other)]
        whole = set(map(repr, load(dataclasses.replace(one, held_share=0.0, part="")).rows))
        assert both[0] and both[1] and not both[0] & both[1] and both[0] | both[1] == whole


CLINICAL = Source(
    "c",
    "reasoning",
    "snuh/ClinicalQA",
    language="ko",
    fields=("chief_complaint+question+exam", "options", "answer"),
    rationale=("explanation",),
)


@pytest.mark.parametrize("subset", ["default", "string", "python"])
def test_options_as_a_dict_and_as_the_text_of_one(hub, subset):
    rows = STANDINS["snuh/ClinicalQA"].rows["", "train"]
    questions = load(dataclasses.replace(CLINICAL, subset=subset)).rows
    assert len(questions) == len(rows)
    for question, row in zip(questions, rows, strict=True):
        assert question.options == tuple(row["options"].values())
        assert question.options[question.answer] == row["options"][f"option_{row['answer']}"]
        assert question.question == f"복통\n{row['question']}\n혈압 120/80 mmHg"
        assert question.rationale == "근거는 다음과 같다."


@pytest.mark.parametrize(
    "path, subset, split, key",
    [
        ("lavita/medical-qa-datasets", "med-qa-en-5options-source", "train", "answer"),
        ("cais/mmlu", "professional_medicine", "test", None),
        ("openlifescienceai/medmcqa", "", "validation", None),
    ],
)
def test_options_as_pairs_as_choices_and_in_columns_counted_from_0(hub, path, subset, split, key):
    rows = STANDINS[path].rows[subset, split]
    questions = load(Source("s", "exam", path, subset=subset, split=split, answers_from=0)).rows
    for question, row in zip(questions, rows, strict=True):
        right = question.options[question.answer]
        if key:
            assert right == row[key] and len(question.options) == 5
        elif "choices" in row:
            assert right == row["choices"][row["answer"]]
        else:
            assert right == row[f"op{'abcd'[row['cop']]}"]


def test_pairs_under_translation_and_lists_of_terms(hub):
    nested = Source("n", "translation", "Helsinki-NLP/opus-100", subset="en-ko", split="test")
    rows = STANDINS["Helsinki-NLP/opus-100"].rows["en-ko", "test"]
    found = load_pairs(nested, drop_bad=False).rows
    assert [{"en": p.en, "ko": p.ko} for p in found] == [row["translation"] for row in rows]

    terms = Source("t", "translation", "junyeong-nero/KMA-term", fields=("en", "kr"))
    with pytest.raises(BadDataError, match="row 3: a list of terms is empty"):
        load_pairs(terms, drop_bad=False)
    loaded = load_pairs(terms, drop_bad=True)
    assert [(p.id, p.en, p.ko) for p in loaded.rows] == [
        ("t/0.0", "abdominal pain", "복통"),
        ("t/0.1", "abdominal pain", "배앓이"),
        ("t/1", "fever", "발열"),
    ]
    assert any("list of terms" in note for note in loaded.notes)


def test_columns_the_other_way_round_are_read_so_and_counted(hub):
    turned = dataclasses.replace(
        SOURCES["translation medical-pairs"], fields=("answer_trans", "answer")
    )
    as_named, loaded = (
        load_pairs(s, drop_bad=False) for s in (SOURCES["translation medical-pairs"], turned)
    )
    assert [p.en for p in loaded.rows] == [p.en for p in as_named.rows]
    assert any("column of the English one" in note for note in loaded.notes)
