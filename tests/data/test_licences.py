"""What licences make of a model, in sentences; and that a run says it before it trains."""

import pytest

from medkor_jax.data.licences import is_non_commercial, licence_notes, licence_of, told_licence
from medkor_jax.data.rows import Source
from medkor_jax.run.config_file import load_recipe
from medkor_jax.run.corpora import Corpora
from medkor_jax.run.readiness import checks


@pytest.mark.parametrize(
    "licence, expected",
    [
        ("CC BY-NC 2.0", True),
        ("cc-by-nc-nd-4.0", True),
        ("CC_BY_NC", True),
        ("Non-Commercial", True),
        ("noncommercial research", True),
        ("CC BY 4.0", False),
        ("CC BY-SA 3.0", False),
        ("Apache 2.0", False),
        ("the ncbi terms", False),
        ("", False),
    ],
)
def test_what_is_non_commercial(licence, expected):
    assert is_non_commercial(licence) is expected


def test_notes_name_the_sources():
    said = [("a", "MIT"), ("b", "CC BY-NC 2.0"), ("c", ""), ("d", "set me"), ("c", "")]
    non_commercial, silent = licence_notes([{"name": n, "licence": of} for n, of in said])
    assert "trained on b (CC BY-NC 2.0), so the model is for non-commercial use" in non_commercial
    assert silent.startswith("no licence is stated for c, d: ")
    assert licence_notes([{"name": "a", "licence": "MIT"}]) == []
    own = Source("e", "text", "embedded")
    assert licence_of(own) == "Apache-2.0" and told_licence(own) == "Apache-2.0"
    assert told_licence(Source("f", "text", "f.jsonl")) == "NOT STATED in the config"


def test_a_run_says_it_before_it_trains():
    def said(*overrides):
        recipe = load_recipe("configs/pipeline.py", overrides)
        return checks(recipe, Corpora(False))["licences"]()

    assert said().count("licences: ") == 1
    assert "korean-exam-train (CC BY-NC 2.0), korean-solutions (CC BY-NC" in said()
    unsaid = said("--config.phase0.data.english-text.licence=set me")
    assert "no licence is stated for english-text" in unsaid
