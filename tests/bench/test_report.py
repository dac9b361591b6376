import json

import pytest

from medkor_jax.bench.report import Report, compare


def test_ratio_is_of_medians_and_spread_of_neighbouring_pairs():
    row = compare("text", "tokens/s", [10, 30, 20], [10, 10, 40], at_least=1.5)
    assert (row.ours, row.other, row.ratio) == (20, 10, 2.0)
    assert row.spread == (0.5, 3.0)
    assert row.is_met is True


@pytest.mark.parametrize("bound, met", [({"at_least": 2.1}, False), ({"at_most": 1.9}, False), ({"at_most": 2.0}, True), ({}, None)])
def test_bounds(bound, met):
    assert compare("x", "s", [4.0], [2.0], **bound).is_met is met


def test_alone_nothing_is_met_or_missed():
    row = compare("text", "tokens/s", [5.0, 7.0], at_least=1.0)
    assert (row.ours, row.other, row.ratio, row.is_met) == (6.0, None, None, None)
    assert Report({}, {"machine": "m"}, [row], []).is_met


def test_pairs_must_be_pairs():
    with pytest.raises(ValueError, match="2 measurements of ours, 1 of the other"):
        compare("x", "s", [1.0, 2.0], [1.0])


def test_table_and_json_say_what_was_missed(tmp_path):
    rows = [compare("text", "tokens/s", [200.0], [100.0], at_least=1.0), compare("peak", "GiB", [3.0], [2.0], at_most=1.0)]
    report = Report({"repeats": 1}, {"machine": "two cores"}, rows, ["a note"])
    first, _, _head, text, peak, _, note = str(report).splitlines()
    assert (first, note) == ("two cores", "a note")
    assert text.split() == ["text", "tokens/s", "200", "100", "2.00", "2.00-2.00", ">=", "1", "met"]
    assert peak.split()[-4:] == ["1.50-1.50", "<=", "1", "MISSED"]
    assert not report.is_met
    report.save(tmp_path / "a" / "bench.json")
    saved = json.loads((tmp_path / "a" / "bench.json").read_text())
    assert [row["is_met"] for row in saved["rows"]] == [True, False]
    assert saved["rows"][0]["samples"] == {"ours": [200.0], "other": [100.0]}
