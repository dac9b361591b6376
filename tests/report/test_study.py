"""The study's table: a row a condition, what moved with its interval, seeds together."""

import json
import pathlib
import shutil

import numpy as np
import pytest

from configs import study
from medkor_jax.io.files import read_sealed, write_sealed
from medkor_jax.io.models import open_model
from medkor_jax.report.files import read_run
from medkor_jax.report.study import as_table, main, rows_of
from medkor_jax.run.config_file import load_recipe
from medkor_jax.run.corpora import Corpora

from ..run.conftest import finished  # noqa: F401

CONFIG = str(pathlib.Path(study.__file__))


@pytest.fixture
def runs(finished, tmp_path):  # noqa: F811
    return [
        pathlib.Path(shutil.copytree(finished, tmp_path / name))
        for name in ("plain-0", "held-0", "held-1")
    ]


def losses_moved(run_dir, by):
    """Each document of what the last phase left costs `by` nats a token more than at the run's start."""
    first, last = (run_dir / phase / "summary.json" for phase in ("phase0", "phase3"))
    begun, ended = read_sealed(first), read_sealed(last)
    for name, found in ended["after"]["watch"].items():
        pieces = begun["before"]["watch"][name]["pieces"]
        found["pieces"] = [[nats + by * n, n] for nats, n in pieces]
    write_sealed(last, ended)


def test_a_row_a_condition_and_the_mean_of_its_seeds(runs):
    for run_dir, by in zip(runs, (0.5, 0.1, 0.3), strict=True):
        losses_moved(run_dir, by)
    plain, held = rows_of([read_run(run_dir) for run_dir in runs])
    assert (plain.condition, plain.seeds, held.condition, held.seeds) == (
        "plain",
        ("0",),
        "held",
        ("0", "1"),
    )
    for row, by in ((plain, 0.5), (held, 0.2)):
        for moved in row.losses.values():
            assert moved.mean == pytest.approx(by) and moved.low <= by <= moved.high
        assert row.seconds > 0 and set(row.probabilities) == {"english"}
    table = as_table([plain, held]).splitlines()
    assert len(table) == 4 and table[3].startswith("| held (2 seeds) | +0.200 [")


def test_a_peer_starts_where_the_others_did(runs):
    """Its own run begins with what it trained: nothing would have moved."""
    for run_dir in runs[:2]:
        losses_moved(run_dir, 0.5)
    (runs[1].with_name("held-model-0")).mkdir()
    (runs[1].with_name("held-model-0") / "peer.json").write_text('{"seconds": 7.0}')
    first, last = (runs[1] / phase / "summary.json" for phase in ("phase0", "phase3"))
    begun = read_sealed(first)
    begun["before"] = read_sealed(last)["after"]
    write_sealed(first, begun)
    plain, peer = rows_of([read_run(run_dir) for run_dir in runs[:2]])
    assert peer.losses == plain.losses and peer.seconds == 7.0
    assert all(moved.mean == pytest.approx(0.5) for moved in peer.losses.values())
    with pytest.raises(ValueError, match="what another condition measured"):
        rows_of([read_run(runs[1])])


def test_the_divergence_stands_beside_where_it_was_measured(runs):
    """A file a run; of two seeds the mean of each document; no cell where a condition has none."""
    for run_dir, by in zip(runs[1:], (0.1, 0.3), strict=True):
        said = {"english-news": {"nats": by, "pieces": [[by * n, n] for n in (5.0, 9.0, 7.0)]}}
        model = read_sealed(run_dir / "phase3/summary.json")["after"]["digest"]
        (run_dir / "kl.json").write_text(json.dumps({"digest": model, "texts": said}))
    plain, held = rows_of([read_run(run_dir) for run_dir in runs])
    assert plain.divergences == {}
    assert held.divergences["english-news"].mean == pytest.approx(0.2)
    head, _, first, second = (line.split(" | ") for line in as_table([plain, held]).splitlines())
    at = head.index("KL english-news")
    assert first[at] == "" and second[at].startswith("+0.200 [")
    kept = json.loads((runs[2] / "kl.json").read_text())
    (runs[2] / "kl.json").write_text(json.dumps(kept | {"digest": "of another model"}))
    (again,) = rows_of([read_run(run_dir) for run_dir in runs[1:]])
    assert again.divergences == {}


def test_the_picture_shows_each_condition(runs, tmp_path, capsys):
    text = next(iter(rows_of([read_run(runs[0])])[0].losses))
    main([*map(str, runs), "--out", str(tmp_path), "--korean", text, "--english", text])
    assert "| plain |" in capsys.readouterr().out
    picture = (tmp_path / "study.svg").read_text()
    assert ">plain<" in picture and ">held<" in picture


def test_what_is_no_run_of_the_study_is_refused(finished):  # noqa: F811
    with pytest.raises(ValueError, match="no finished run named CONDITION-SEED"):
        rows_of([read_run(finished)])


@pytest.mark.parametrize("name", study.CONDITIONS)
def test_all_conditions_read_as_many_tokens_in_as_many_steps(name, shared_data):
    recipe = load_recipe(f"{CONFIG}:{shared_data},{name},3")
    (phase,) = recipe.phases
    stages = [stage for stage in (phase.train, phase.remedy) if stage.steps]
    assert sum(stage.steps for stage in stages) == study.STEPS and recipe.seed == 3
    assert {(s.batch_size, s.seq_len) for s in stages} == {(study.ROWS, study.LENGTH)}
    shares = [source.weight for source in phase.train.data]
    assert sum(shares) > 0 and (phase.train.retention.is_on or not name.startswith("each-layer"))


@pytest.mark.parametrize("name", ["rehearsal-10", "both"])
def test_a_share_of_english_is_a_share_of_the_tokens(name, shared_data):
    """Documents are drawn by weight, and those of a source have their own length: as the 270M's tokenizer counts them."""
    recipe = load_recipe(f"{CONFIG}:{shared_data},{name},0")
    tokenizer, tokens = open_model("embedded").tokenizer, {}
    data = recipe.phases[0].train.data
    for source, examples in Corpora(recipe.drop_bad, say=False).examples(data):
        some = [examples[i] for i in range(0, len(examples), len(examples) // 300)]
        lengths = [
            len(ids) + 2 for ids in tokenizer.encode_batch([one.parts[0][0] for one in some])
        ]
        tokens[source.language] = tokens.get(source.language, 0) + source.weight * np.mean(lengths)
    share = tokens["en"] / sum(tokens.values())
    assert share == pytest.approx(study.CONDITIONS[name].english, abs=0.03)


def test_another_condition_is_refused_by_name():
    with pytest.raises(Exception, match="'rest' is no condition; choose from lora, embeddings"):
        load_recipe(f"{CONFIG}:data,rest,0")


def test_held_out_text_is_cut_the_same_way_for_all():
    """A document is a row's part of it: rows of another length cannot be paired."""
    shapes = set()
    for name in (*study.CONDITIONS, study.PEER):
        recipe = load_recipe(f"{CONFIG}:data,{name},0")
        stage = recipe.phases[0].train  # `run.measurement` reads held-out text as it reads
        shapes.add((stage.batch_size, stage.seq_len, recipe.held_out_tokens))
    assert len(shapes) == 1
