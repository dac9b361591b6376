"""The final exam: put to the finished model once, and every look at it counted.

    sit_final(measurer, lineage, load)      # the run's directory then holds final.json and final/*.jsonl

The questions that gate the phases have had their say in which model came out, so they do not measure it. A final exam
(`final` in a config) has no say in anything. `final.json` keeps, by the digest of the questions, every time that a
model of this run directory sat them, in whichever mode. What it cannot count: `medkor eval` of the same file, and other
run directories.
"""

from __future__ import annotations

import pathlib
import time
from collections.abc import Callable

from medkor_jax.data.contents import checksum
from medkor_jax.io.files import write_json
from medkor_jax.io.loaded_model import LoadedModel
from medkor_jax.io.models import Model
from medkor_jax.parallel.hosts import say
from medkor_jax.run.facts import exam_asked
from medkor_jax.run.lineage import Lineage
from medkor_jax.run.measurement import Measurer
from medkor_jax.run.summary import FINAL, phase_lines, read_final, times


def sit_final(measurer: Measurer, lineage: Lineage, load: Callable[[Model], LoadedModel]) -> None:
    """Puts the final exams to the last phase's model, once that phase has run, unless this model sat them; prints the scores.

    load: gives a model's parameters, called where they are needed.
    """
    recipe, corpora, directory = measurer.recipe, measurer.corpora, measurer.directory
    last = recipe.phases[-1]
    if not recipe.final or last.name not in recipe.run:
        return
    model = lineage.open(last.name)
    record, loaded = read_final(directory), None
    for exam in recipe.final:
        name, questions = exam.source.name, corpora.questions(exam.source)
        digest = checksum([(q.question, q.options, q.answer) for q in questions])
        looks = record.setdefault(digest, {"n": len(questions), "looks": []})["looks"]
        how = exam_asked(recipe, corpora, exam)
        if any(look["model"] == model.digest and look["asked"] == how for look in looks):
            continue
        loaded = loaded or load(model)
        report = measurer.examine(loaded, name)
        file = pathlib.Path("final") / f"{name}-{len(looks) + 1}.jsonl"
        report.write(directory / file)
        looks.append(
            {
                "exam": name,
                "model": model.digest,
                "phase": last.name,
                "asked": how,
                "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
                "answers": str(file),
                "report": report.summary(),
            }
        )
        write_json(directory / FINAL, record)
        say(
            f"final exam, {report.table() if report.alarms else phase_lines(name, report)}; looked at {times(len(looks))}"
        )
