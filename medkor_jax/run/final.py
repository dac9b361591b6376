"""The final exam: put to the finished model once, and every look at it counted.

    sit_final(run)      # after the last phase; the run's directory then holds final.json and final/*.jsonl

The questions that gate the phases have had their say in which model came out, so they do not measure it. A final exam
(`final` in a config) has no say in anything. `final.json` keeps, by the digest of the questions, every time that a
model of this run directory sat them, in whichever mode. What it cannot count: `medkor eval` of the same file, and other
run directories.
"""

from __future__ import annotations

import pathlib
import time
from typing import TYPE_CHECKING

from medkor_jax.data.contents import checksum
from medkor_jax.io.files import write_json
from medkor_jax.parallel.hosts import say
from medkor_jax.run.lineage import exam_asked
from medkor_jax.run.summary import FINAL, phase_lines, read_final, times

if TYPE_CHECKING:
    from medkor_jax.run.pipeline import Run


def sit_final(run: Run) -> None:
    """Puts the final exams to the last phase's model, once that phase has run, unless this model sat them; prints the scores."""
    recipe, last = run.recipe, run.recipe.phases[-1]
    if not recipe.final or last.name not in run.recipe.run:
        return
    model = run.lineage.open(last.name)
    record, loaded = read_final(run.directory), None
    for exam in recipe.final:
        name, questions = exam.source.name, run.corpora.questions(exam.source)
        digest = checksum([(q.question, q.options, q.answer) for q in questions])
        looks = record.setdefault(digest, {"n": len(questions), "looks": []})["looks"]
        how = exam_asked(recipe, run.corpora, exam)
        if any(look["model"] == model.digest and look["asked"] == how for look in looks):
            continue
        loaded = loaded or run._load(model)
        report = run.measurer.examine(loaded, name)
        file = pathlib.Path("final") / f"{name}-{len(looks) + 1}.jsonl"
        report.write(run.directory / file)
        looks.append({
            "exam": name, "model": model.digest, "phase": last.name, "asked": how, "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "answers": str(file), "report": report.summary(),
        })  # fmt: skip
        write_json(run.directory / FINAL, record)
        say(f"final exam, {report.table() if report.alarms else phase_lines(name, report)}; looked at {times(len(looks))}")
