"""The closing table, from files as a run leaves them."""

import json

from medkor_jax.report.summary import closing_table


def measured(loss, right, chrf=None, both=None, **more):
    def score(accuracy):
        return {"group": "all", "accuracy": accuracy, "low": accuracy - 0.1, "high": accuracy + 0.1, "n": 40}

    exams = {"english": {"scores": [score(right)], "mode": "cloze", "split": "valid"}}
    if both is not None:
        exams["reasoned"] = {"scores": [score(0.5)], "mode": "reason", "split": "valid", "reasoning": {"both": both}}
    pairs = {}
    if chrf is not None:
        one = {"direction": "en-ko", "metric": "chrf", "score": chrf, "low": chrf - 1, "high": chrf + 1, "n": 8}
        pairs = {"pairs": {"scores": [one]}}
    return {"watch": {"korean": {"nats": loss, "tokens": 10}}, "exams": exams, "translations": pairs}


def write(run_dir, name, before, after):
    (run_dir / name).mkdir()
    summary = {"phase": name, "title": f"title of {name}", "seconds": 12.3, "rounds": 1, "before": before, "after": after}
    (run_dir / name / "summary.json").write_text(json.dumps(summary))


def test_every_number_is_shown_before_and_after(tmp_path):
    write(tmp_path, "phase3", measured(5.0, 0.6), measured(4.0, 0.5))
    write(tmp_path, "phase5", measured(4.0, 0.5, 12.0, 0.25), measured(4.5, 0.55, 61.0, 0.975))
    table = closing_table(tmp_path, ["phase0", "phase3", "phase5"])
    lines = [" ".join(line.split()) for line in table.split("\n")]
    assert "phase3 title of phase3 (12 s, 1 remedy rounds)" in lines
    assert "loss, korean 5.000 -> 4.000" in lines
    assert "exam, english 60.0% -> 50.0% [40.0%, 60.0%] of 40 (cloze, valid)" in lines
    assert "translation, pairs en-ko chrF 12.0 -> 61.0 [60.0, 62.0] over 8" in lines
    assert "of these texts 97.5% have the format and one letter" in lines
    assert lines.count("verdict: missing or damaged") == 2
    assert "korean loss 5.000 -> 4.500 (lower than before)" in lines
    assert "english exam 60.0% -> 55.0% [45.0%, 65.0%] of 40 (cloze, valid)" in lines
    assert "reasoned exam 50.0% (before phase5) -> 50.0% [40.0%, 60.0%] of 40 (reason, valid)" in lines  # not put to the first phase


def test_a_run_without_a_finished_phase_says_so(tmp_path):
    assert "no phase has finished" in closing_table(tmp_path, ["phase0"])
