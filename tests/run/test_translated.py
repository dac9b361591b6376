"""Exams that a run translates for itself: once, before it trains, checked by their originals and by what came of them."""

import dataclasses
import gc
import json
import shutil
import weakref

import pytest

from medkor_jax.data import embedded
from medkor_jax.data.check import JUDGED, Use
from medkor_jax.data.likeness import content_key
from medkor_jax.data.pairs import translation_prompt
from medkor_jax.data.rows import Source
from medkor_jax.eval.report import Report
from medkor_jax.eval.scoring import Continuation
from medkor_jax.eval.verdict import read_verdict
from medkor_jax.io.bases import save_base
from medkor_jax.io.models import open_model, read_ledger
from medkor_jax.run import pipeline
from medkor_jax.run.config_file import make_recipe
from medkor_jax.run.corpora import Corpora, LeakError
from medkor_jax.run.lineage import Stale
from medkor_jax.run.named_model import open_model as open_named
from medkor_jax.run.phases import ConfigError
from medkor_jax.run.readiness import check_recipe, checks
from medkor_jax.run.summary import closing_table
from medkor_jax.run.translated import find_translations
from medkor_jax.run.translation_files import Translation

from .test_pipeline import STAGE, make_config

KOREAN, ENGLISH = (
    {split: embedded.questions(split, language) for split in ("train", "valid")}
    for language in ("ko", "en")
)
JUDGE = dict(path="embedded", split="valid", language="ko", limit=40, translated_to="en")
TAUGHT = dict(
    kind="exam", path="embedded", language="ko", limit=20, translated_to="en", licence="NC"
)


class Translator:
    """The run's own scorer, loaded as it is; what it writes is looked up: the embedded exam in English."""

    def __init__(self, true, spoil=(), dies_at=None):
        self.true, self.style, self.dies_at, self.calls = true, true.style, dies_at, []
        self.known = {}
        for split in KOREAN:
            for before, after in zip(KOREAN[split], ENGLISH[split]):
                texts = zip((before.question, *before.options), (after.question, *after.options))
                self.known |= {text: (put, 7) for text, put in texts}
        self.known |= dict.fromkeys(spoil, ("", 1))
        self.prompts = {
            tuple(self.style.prompt(translation_prompt(text, "ko", "en"))): text
            for text in self.known
        }

    def complete(self, prompts, *, max_new_tokens, stop):
        if len(self.calls) == self.dies_at:
            raise KeyboardInterrupt
        self.calls.append(asked := [self.prompts[tuple(prompt)] for prompt in prompts])
        return [Continuation(*self.known[text], True) for text in asked]


@pytest.fixture
def translators(monkeypatch):
    """Every scorer that was asked for to translate, as (weights, it); `how` is how the next are made."""

    class Made(list):
        how = {}

    made, true = Made(), pipeline.Run._translator

    def translator(self, name):
        made.append((name, Translator(true(self, name), **made.how)))
        return made[-1][1]

    monkeypatch.setattr(pipeline.Run, "_translator", translator)
    return made


@pytest.fixture
def other(make_base, tiny_base_dir, tmp_path_factory):
    """Other weights of the same tokenizer."""
    model, directory = open_model(tiny_base_dir), tmp_path_factory.mktemp("other") / "other"
    base = make_base(model.config, seed=3)
    save_base(directory, base, model.config, model.tokenizer, {"made_by": "tests"})
    return directory


def config_of(run_dir, weights, run=("phase0",), **judge):
    """One phase that learns translated questions and is judged by translated ones."""
    config = make_config(run_dir, weights)
    for name in set(config["phases"]) - set(run):
        del config[name]
    config["run"] = config["phases"] = run
    config["exams"] = dict(choice=dict(source=JUDGE | judge, batch_size=8))
    config["phase0"]["exam"] = "choice"
    config["phase0"]["data"] = {"exam-train": dict(TAUGHT)}
    config["phase0"]["seq_len"] = 128
    return config


def run(config):
    pipeline.Run(make_recipe(config)).all()


def read(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def files(directory):
    return {
        path.name: path.read_bytes()
        for path in sorted(directory.iterdir())
        if path.suffix == ".jsonl"
    }


def nothing_is_done(monkeypatch):
    monkeypatch.setattr(pipeline, "run_stage", lambda *_: pytest.fail("a stage was trained"))
    monkeypatch.setattr(pipeline.Measurer, "examine", lambda *_: pytest.fail("an exam was asked"))


@pytest.fixture(scope="module")
def finished(tiny_base_dir, tmp_path_factory):
    """A finished run, two of whose rows could not be translated."""
    directory = tmp_path_factory.mktemp("finished") / "run"
    with pytest.MonkeyPatch.context() as patch:
        true = pipeline.Run._translator
        spoil = [KOREAN["valid"][3].question]
        patch.setattr(
            pipeline.Run, "_translator", lambda self, name: Translator(true(self, name), spoil)
        )
        run(config_of(directory, tiny_base_dir))
    return directory


def spoilt():
    return [
        q.id for q in KOREAN["valid"][:40] if q.question == KOREAN["valid"][3].question
    ]  # alike in other variants of the fact


def test_the_model_is_taught_and_judged_by_what_was_translated(finished, tiny_base_dir):
    place, failed = finished / "translated", spoilt()
    rows = read(place / "choice.jsonl")
    assert [row["id"] for row in rows] == [q.id for q in KOREAN["valid"][:40] if q.id not in failed]
    assert rows[0]["question"] == ENGLISH["valid"][0].question
    assert rows[0]["translated_from"] == content_key(KOREAN["valid"][0])
    answers = Report.read(next((finished / "phase0/answers").glob("choice-after.jsonl"))).answers
    assert [(a.id, a.language) for a in answers] == [(row["id"], "en") for row in rows]
    model = open_model(finished / "phase0")
    (reading,) = model.read
    assert reading.source.path == str((place / "exam-train.jsonl").resolve())
    assert (reading.source.licence, reading.source.translated_to) == ("NC", "")
    assert len(read(place / "exam-train.jsonl")) == 20


def test_its_cost_and_its_failures_are_in_the_report(finished, tiny_base_dir):
    report = json.loads((finished / "translated/choice.json").read_text())
    failed = spoilt()
    assert (report["n_questions"], report["n_passed"]) == (40, 40 - len(failed))
    assert [fault["id"] for fault in report["faults"]] == failed
    assert report["faults"][0]["reasons"] == ["question is empty"]
    work = read(finished / "translated/choice.jsonl.work.jsonl")[1:]
    assert report["n_tokens"] == sum(line["n_tokens"] for line in work) > 40 * 7
    assert report["seconds"] > 0 and report["by"] == str(tiny_base_dir)
    assert report["made_by"]["weights"] == open_named(str(tiny_base_dir)).digest
    listed = read(finished / "translated/choice.jsonl.failed.jsonl")
    assert [row["id"] for row in listed] == failed
    table = closing_table(finished, ["phase0"])
    assert f"translated exam, choice: {40 - len(failed)} of 40 questions put into English" in table
    assert f"left out: {failed[0]}: question is empty" in table
    assert "translated exam, exam-train: 20 of 20 questions" in table
    verdict = read_verdict(finished / "phase0/verdict.json")
    said = {source["name"]: source for source in verdict["sources"]}
    for name in ("choice", "exam-train"):
        assert (said[name]["translated_to"], said[name]["translator"]) == (
            "en",
            str(tiny_base_dir),
        )
    assert "translator" not in said["english"]


def test_it_is_done_once(finished, tiny_base_dir, tmp_path, translators, monkeypatch, capsys):
    shutil.copytree(finished, tmp_path / "run")
    before = files(tmp_path / "run/translated")
    ledger = read_ledger(tmp_path / "run")
    nothing_is_done(monkeypatch)
    run(config_of(tmp_path / "run", tiny_base_dir))
    assert not translators and files(tmp_path / "run/translated") == before
    assert read_ledger(tmp_path / "run") == ledger
    said = capsys.readouterr().out
    assert "choice: 3" in said and "of 40 questions put into English by" in said

    # What was damaged is written again from what the model wrote: the model is not asked.
    (tmp_path / "run/translated/choice.jsonl").write_text("")
    run(config_of(tmp_path / "run", tiny_base_dir))
    assert not translators and files(tmp_path / "run/translated") == before


@pytest.mark.parametrize("dies_at", [0, 2])
def test_killed_in_the_middle_it_goes_on_to_the_same_file(
    dies_at, finished, tmp_path, tiny_base_dir, translators, monkeypatch
):
    nothing_is_done(monkeypatch)
    spoil = [KOREAN["valid"][3].question]
    translators.how = dict(dies_at=dies_at, spoil=spoil)
    config = config_of(tmp_path / "run", tiny_base_dir)
    with pytest.raises(KeyboardInterrupt):
        run(config)
    first = json.loads((tmp_path / "run/translated/exam-train.json").read_text())
    assert first["digest"] or dies_at == 0
    translators.how = dict(spoil=spoil)
    monkeypatch.setattr(
        pipeline.Run, "phase", lambda *_: (_ for _ in ()).throw(InterruptedError)
    )  # what comes after it is another test's
    with pytest.raises(InterruptedError):
        run(config)
    assert files(tmp_path / "run/translated") == files(finished / "translated")
    n_calls = [len(scorer.calls) for _, scorer in translators]
    assert n_calls == [dies_at, 5 - dies_at]  # 2 batches of 20 questions, 3 of 40


def test_another_translator_makes_it_anew_and_what_stands_on_it_is_stale(
    finished, tmp_path, tiny_base_dir, other, translators, monkeypatch, capsys
):
    shutil.copytree(finished, tmp_path / "run")
    nothing_is_done(monkeypatch)
    config = config_of(tmp_path / "run", tiny_base_dir)
    config["phase0"]["data"]["exam-train"]["translator"] = str(other)
    translators.how = dict(spoil=[KOREAN["train"][0].question])
    with pytest.raises(Stale, match=r"train\.data\.exam-train was 20 rows .* is 1\d rows"):
        run(config)
    assert [name for name, _ in translators] == [str(other)]
    said = capsys.readouterr().out
    assert "exam-train is translated anew: other weights. What was made before is in" in said
    place = tmp_path / "run/translated"
    assert (place / "exam-train.before-1/exam-train.jsonl").read_bytes() == (
        finished / "translated/exam-train.jsonl"
    ).read_bytes()
    report = json.loads((place / "exam-train.json").read_text())
    assert report["by"] == str(other) and report["n_passed"] < 20
    assert report["made_by"]["weights"] == open_model(other).digest

    # Other rows are other questions: the judge is made anew, and by the same rows nothing is.
    translators.clear()
    config = config_of(tmp_path / "run", tiny_base_dir, limit=32)
    config["phase0"]["data"]["exam-train"]["translator"] = str(other)
    with pytest.raises(Stale):
        run(config)
    assert [name for name, _ in translators] == [str(tiny_base_dir)]
    assert (place / "choice.before-1/choice.json").exists()
    assert len(read(place / "choice.jsonl")) <= 32


def test_one_base_is_held_at_a_time_and_the_runs_own_is_the_last(
    tmp_path, tiny_base_dir, other, translators, monkeypatch
):
    held, loaded, alive = [], [], []
    true = pipeline.Run._translator
    monkeypatch.setattr(
        pipeline.Run, "phase", lambda self, phase: held.append(list(self._bases)) or None
    )

    def translator(self, name):
        gc.collect()
        alive.append([one() is not None for one in loaded])
        scorer = true(self, name)
        loaded.append(weakref.ref(scorer))
        translators.pop()  # who made it does not hold it
        return scorer

    monkeypatch.setattr(pipeline.Run, "_translator", translator)
    monkeypatch.setattr(pipeline, "sit_final", lambda *_: None)
    config = config_of(tmp_path / "run", tiny_base_dir)
    config["phase0"]["data"]["exam-train"]["translator"] = str(other)
    config["exams"]["choice"]["source"]["limit"] = 20
    run(config)
    assert alive == [[], [False]]
    assert held == [[open_model(tiny_base_dir).base.digest]]


def test_too_few_rows_that_pass_are_refused_before_any_training(
    tmp_path, tiny_base_dir, translators, monkeypatch
):
    nothing_is_done(monkeypatch)
    config = config_of(tmp_path / "run", tiny_base_dir)
    config["phase0"]["gate"] = dict(reading="absolute", threshold=0.3, on_failure="stop")
    config["phase0"]["is_reference"] = True
    translators.how = dict(spoil=[q.question for q in KOREAN["valid"][:21]])
    with pytest.raises(
        ConfigError,
        match=r"phase0, .*on 'choice' at least 30.0% \(\d+ of 40 translated questions passed their checks; why the others did "
        r"not is in .*choice.jsonl.failed.jsonl\): \d+ questions can open no gate",
    ):
        run(config)
    translators.how = dict(spoil=[q.question for q in KOREAN["train"]])
    with pytest.raises(
        ConfigError,
        match="exam-train, translated by .*: none of the 20 translated questions passes .* Nothing was trained",
    ):
        run(config_of(tmp_path / "none", tiny_base_dir))


def test_before_it_is_translated_a_gate_is_told_by_at_most_its_originals(tmp_path, tiny_base_dir):
    recipe = make_recipe(config_of(tmp_path / "run", tiny_base_dir))
    asked = checks(recipe, Corpora(False))
    assert "at most 40 questions; " in asked["gates"]()
    words = asked["translations"]()
    assert (
        f"choice: embedded into English by {tiny_base_dir}, as it is before any training: 40 questions, "
        in words
    )
    assert "exam-train: embedded into English" in words
    plain = make_recipe(make_config(tmp_path / "run", tiny_base_dir))
    assert "translations" not in checks(plain, Corpora(False))


def leaking(tmp_path, tiny_base_dir, rows):
    """A run that is taught Korean rows, and judged by the English of others."""
    path = tmp_path / "korean.jsonl"
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    config = config_of(tmp_path / "run", tiny_base_dir)
    config["phase0"]["data"] = {"korean": dict(kind="exam", path=str(path), language="ko")}
    return make_recipe(config)


def row_of(question, **changes):
    options = dict(zip("ABCDE", question.options))
    return {"question": question.question, **options, "answer": "ABCDE"[question.answer]} | changes


def test_a_question_taught_in_korean_and_judged_in_english_is_a_leak(
    finished, tmp_path, tiny_base_dir, translators
):
    judged = KOREAN["valid"][5]
    recipe = leaking(tmp_path, tiny_base_dir, [row_of(judged), row_of(KOREAN["train"][1])])
    with pytest.raises(LeakError, match=rf"korean:.* ~ choice:{judged.id}"):
        pipeline.Run(recipe).all()
    assert not translators and not (tmp_path / "run").exists()

    # Once it is translated: by what the row says that it was made from, and by the original itself.
    def found(rows):
        recipe = leaking(tmp_path, tiny_base_dir, rows)
        corpora = Corpora(False)
        made = Translation(finished / "translated/choice.jsonl", 40, 38)
        corpora.translations.take(recipe.exam("choice").source, made)
        return corpora.leaks(recipe)

    (leak,) = found([row_of(judged), row_of(KOREAN["train"][1])])
    assert (leak.judged_id, leak.judged_source) == (judged.id, "choice")
    # With another option it is no longer what the row was made from, and no English text is like it: the original is.
    edited = row_of(judged) | {"E" if judged.answer != 4 else "A": "다른 보기"}
    (leak,) = found([edited])
    assert (leak.judged_id, leak.which) == (judged.id, "stem")
    assert found([row_of(KOREAN["train"][1])]) == []


def test_what_is_compared_of_a_translation_are_both_its_forms(finished, tmp_path, tiny_base_dir):
    recipe = make_recipe(config_of(finished, tiny_base_dir))
    corpora, source = Corpora(False), recipe.exam("choice").source
    assert not find_translations(recipe, corpora)
    documents = corpora.compared(Use(JUDGED, source))
    n = 40 - len(spoilt())
    assert [q.language for q in documents] == ["en"] * n + ["ko"] * n
    assert not {q.id for q in documents} & set(spoilt())
    assert check_recipe(recipe).obstacles == ()


def test_a_translation_is_the_question_that_chose_the_reference(finished, tmp_path, tiny_base_dir):
    """Korean questions whose English chose the model may not tell how that model is kept."""
    config = make_config(tmp_path / "run", tiny_base_dir)
    config["exams"] = dict(
        choice=dict(source=JUDGE), korean=dict(source=JUDGE | dict(translated_to=""))
    )
    for name in config["phases"]:
        config[name]["exam"] = "korean"
    gate = dict(reading="absolute", threshold=0.3, on_failure="train", rounds=1)
    config["phase1"] |= dict(exam="choice", gate=gate, remedy=dict(STAGE, trees=("lora",)))
    config["phase2"]["gate"] = dict(reading="relative", threshold=0.1, on_failure="stop")
    recipe = make_recipe(config)
    with pytest.raises(ConfigError, match="40 of its questions are in exam 'choice' too"):
        checks(recipe, Corpora(False))["gates"]()
    corpora = Corpora(False)
    made = Translation(finished / "translated/choice.jsonl", 40, n := 40 - len(spoilt()))
    corpora.translations.take(recipe.exam("choice").source, made)
    with pytest.raises(ConfigError, match=f"{n} of its questions are in exam 'choice' too"):
        checks(recipe, corpora)["gates"]()


@pytest.mark.parametrize(
    "wrong, words",
    [
        (dict(translated_to="fr"), "translated_to is 'fr', expected 'ko', 'en' or ''"),
        (dict(translator="x"), "translator is 'x' and translated_to ''"),
        (dict(translated_to="ko", language="ko"), "there is nothing to translate"),
        (dict(translated_to="en", kind="text"), "only an exam's questions are translated"),
    ],
)
def test_a_source_that_cannot_be_translated_is_refused(wrong, words):
    with pytest.raises(ValueError, match=words):
        Source(**(dict(name="s", kind="exam", path="x.jsonl") | wrong))


def test_rows_in_that_language_and_two_of_one_name_are_refused(tmp_path, tiny_base_dir):
    mixed = tmp_path / "mixed.jsonl"
    rows = [row_of(KOREAN["valid"][0]), row_of(ENGLISH["valid"][1])]
    mixed.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    config = config_of(tmp_path / "run", tiny_base_dir, path=str(mixed), language="")
    with pytest.raises(ConfigError, match="choice: 1 of its 2 questions are in 'en' already"):
        checks(make_recipe(config), Corpora(False))["translations"]()
    config = config_of(tmp_path / "run", tiny_base_dir)
    config["phase0"]["data"]["choice"] = dict(TAUGHT)
    with pytest.raises(ConfigError, match="two sources named 'choice' are translated otherwise"):
        checks(make_recipe(config), Corpora(False))["translations"]()
    same = dict(TAUGHT, weight=2.0)
    config["phase0"]["data"] = {"exam-train": dict(TAUGHT)}
    config["phase0"]["remedy"] = dict(STAGE, data={"exam-train": same}, trees=("lora",))
    assert checks(make_recipe(config), Corpora(False))["translations"]().count("exam-train") == 1


def test_what_is_not_known_to_be_translated_is_not_read_as_it_is():
    from medkor_jax.data.sources import load_questions

    with pytest.raises(ValueError, match="is translated by the run that names it"):
        load_questions(
            Source("s", "exam", "embedded", language="ko", translated_to="en"), drop_bad=False
        )
    source = Source("s", "exam", "embedded", language="ko", translated_to="en", translator="x")
    assert source.original == Source("s", "exam", "embedded", language="ko")
    assert dataclasses.replace(source, translator="").settings() == source.settings()
    assert source.settings() != source.original.settings()
