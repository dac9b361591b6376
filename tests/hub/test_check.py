"""`check.py`, which compares the configs with the real hub, on stand-ins in the hub's place."""

import types

import pytest

from tests.hub import check
from tests.hub.standins import standins

PIPELINE = "configs/pipeline.py"


@pytest.fixture
def real(standin_root, tmp_path_factory, monkeypatch):
    """The hub, as the stand-ins have it."""
    import datasets
    import huggingface_hub

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("hf"))
    load, names = datasets.load_dataset, datasets.get_dataset_split_names

    def info(self, repository, **_):
        card = types.SimpleNamespace(to_dict=lambda: {"license": standins()[repository].licence})
        return types.SimpleNamespace(sha="abc", card_data=card, gated=False, siblings=[])

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", info)
    monkeypatch.setattr(
        datasets,
        "load_dataset",
        lambda path, *a, revision, **b: load(str(standin_root / path), *a, **b),
    )
    monkeypatch.setattr(
        datasets,
        "get_dataset_split_names",
        lambda path, *a, revision: names(str(standin_root / path), *a),
    )


def test_what_is_as_the_configs_say_is_not_marked(real, capsys):
    marked = check.main([PIPELINE])
    lines = capsys.readouterr().out.splitlines()
    found = [line for line in lines if line.startswith(check.MARK)]
    # The stand-ins have other cards here than what was read of the real ones.
    assert marked == len(found) and all("licence: the card says" in line for line in found)
    assert "  licence: the card says cc-by-nc-2.0, the config 'CC BY-NC 2.0'" in lines
    assert any(
        line.startswith(
            "  korean-exam-train (trained, doctor train): splits train, dev, test, fewshot; columns subject,"
        )
        for line in lines
    )
    assert any("50 read; the first: Question(" in line for line in lines)


def test_other_columns_and_splits_are_marked(real, monkeypatch, capsys):
    import datasets

    load = datasets.load_dataset

    def renamed(path, *arguments, **named):
        rows = load(path, *arguments, **named)
        return [{f"{k}_x" if k == "thinking" else k: v for k, v in row.items()} for row in rows]

    monkeypatch.setattr(datasets, "load_dataset", renamed)
    check.main([PIPELINE])
    said = capsys.readouterr().out
    assert "not in the stand-in ['thinking_x'], only in the stand-in ['thinking']" in said
    assert "!! korean-solutions (trained, default train): 1 bad row; wrong column names" in said
    assert check.same_licence("Apache 2.0", "apache-2.0") and not check.same_licence("MIT", "")
