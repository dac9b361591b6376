"""The table and the picture of the study (configs/study.py): what Korean gained, what English lost, what it cost.

    python -m medkor_jax.report.study runs/study/*-[0-9] --out docs       # docs/study.svg; the table is printed

A run is a condition and a seed, CONDITION-SEED. What is told of it is how the held-out losses moved from its start to its
end, nats a token, with 95 % intervals paired by document (bootstrap); of several seeds the mean of each document is taken
first. Where `medkor_jax.bench.study_kl` was run, KL(start || end) stands beside them. All conditions share their tokenizer, so a token is the same text for all. Seconds are those of the training steps.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import pathlib
from collections.abc import Sequence

import numpy as np

from medkor_jax.eval import stats
from medkor_jax.eval.metric import outcomes, pairing
from medkor_jax.report.comparing import moved_in_nats, nats_by_document
from medkor_jax.report.files import RunFiles, read_run
from medkor_jax.report.pictures import draw_study

PEER_FILE, KL_FILE = "peer.json", "kl.json"


@dataclasses.dataclass(frozen=True)
class Moved:
    """By how much a mean moved, and its 95 % interval."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:+.3f} [{self.low:+.3f}, {self.high:+.3f}]"


@dataclasses.dataclass(frozen=True)
class Row:
    """A condition. losses: by text; probabilities: of the right option, by exam; divergences: KL to the start, by text, where measured."""

    condition: str
    seeds: tuple[str, ...]
    losses: dict[str, Moved]
    probabilities: dict[str, Moved]
    seconds: float
    divergences: dict[str, Moved]


def rows_of(runs: Sequence[RunFiles]) -> list[Row]:
    """Returns a row a condition, in the order in which they first come.

    All start from one model. A peer's own run begins where its training has ended, so its start is read of another run.

    Raises: ValueError for a run that has not finished, whose texts are not those of the others, or a peer alone.
    """
    found: dict[str, list[tuple[str, RunFiles]]] = {}
    for run in runs:
        condition, _, seed = run.name.rpartition("-")
        if not condition or not run.chain:
            raise ValueError(f"{run.on_disk.directory} is no finished run named CONDITION-SEED")
        found.setdefault(condition, []).append((seed, run))
    ours = [run for run in runs if not _peer_file(run).exists()]
    if not ours:
        raise ValueError("a peer's start is what another condition measured: name one too")
    return [_row(condition, of, ours[0]) for condition, of in found.items()]


def _row(condition: str, of: list[tuple[str, RunFiles]], first: RunFiles) -> Row:
    runs = [run for _, run in of]
    begun = [(first if _peer_file(run).exists() else run, run) for run in runs]
    watched = runs[0].chain[-1].summary["after"]["watch"]
    exams = runs[0].chain[-1].exams("after")
    return Row(
        condition,
        tuple(seed for seed, _ in of),
        {name: _moved([_by_document(*both, name) for both in begun]) for name in watched},
        {name: _moved([_by_question(*both, name) for both in begun]) for name in exams},
        float(np.mean([_seconds(run) for run in runs])),
        _divergences(runs),
    )


def _divergences(runs: Sequence[RunFiles]) -> dict[str, Moved]:
    """Returns what was measured of the model that each of the runs ended in; nothing if one is missing."""
    told = []
    for run in runs:
        file, model = run.on_disk.directory / KL_FILE, run.chain[-1].summary["after"]["digest"]
        kept = json.loads(file.read_text()) if file.exists() else {}
        if (
            kept.get("digest") != model
        ):  # a file of a model that was trained again since is of no use
            return {}
        told.append(kept["texts"])
    return {name: _moved([nats_by_document(one[name]) for one in told]) for name in told[0]}


def _moved(of_seeds: list[np.ndarray]) -> Moved:
    if len({len(one) for one in of_seeds}) != 1:
        raise ValueError("the runs of a condition were measured on other texts")
    mean = np.mean(of_seeds, axis=0)
    return Moved(float(mean.mean()), *stats.bootstrap_mean(mean, 0.95))


def _by_document(start: RunFiles, run: RunFiles, name: str) -> np.ndarray:
    before, after = start.chain[0].summary["before"], run.chain[-1].summary["after"]
    return moved_in_nats(before["watch"][name], after["watch"][name])


def _by_question(start: RunFiles, run: RunFiles, name: str) -> np.ndarray:
    before, after = start.chain[0].report("before", name), run.chain[-1].report("after", name)
    if before is None or after is None:
        raise ValueError(f"{run.on_disk.directory}: the answers to {name} are not there")
    return outcomes(after, "probability") - outcomes(before, "probability")[pairing(after, before)]


def _seconds(run: RunFiles) -> float:
    """Returns the seconds of all training steps; a peer's are in its own file."""
    peer = _peer_file(run)
    if peer.exists():
        return json.loads(peer.read_text())["seconds"]
    stages = [stage.rows for phase in run.chain for stage in phase.stages]
    timed = [[row["step_seconds"] for row in rows if "step_seconds" in row] for rows in stages]
    # a first step compiles, and is taken for one like the others
    return sum(float(np.mean(t)) * len(rows) for t, rows in zip(timed, stages) if t)


def _peer_file(run: RunFiles) -> pathlib.Path:
    """Returns where a peer's own figures are; of our runs there is none."""
    condition, _, seed = run.name.rpartition("-")
    return run.on_disk.directory.with_name(f"{condition}-model-{seed}") / PEER_FILE


def as_table(rows: Sequence[Row]) -> str:
    """Returns the rows in Markdown: losses and KL (lower is better), then exams (higher is better), then seconds."""
    texts, exams = list(rows[0].losses), list(rows[0].probabilities)
    told = list(dict.fromkeys(name for row in rows for name in row.divergences))
    kl = [f"KL {name}" for name in told]
    head = ["condition", *texts, *kl, *(f"{name} exam" for name in exams), "train s"]
    lines = [f"| {' | '.join(head)} |", f"|{' --- |' * len(head)}"]
    for row in rows:
        seeds = f" ({len(row.seeds)} seeds)" if len(row.seeds) > 1 else ""
        cells = [row.condition + seeds, *(str(row.losses[name]) for name in texts)]
        cells += [str(row.divergences.get(name, "")) for name in told]
        cells += [
            f"{100 * m.mean:+.1f} [{100 * m.low:+.1f}, {100 * m.high:+.1f}]"
            for m in (row.probabilities[name] for name in exams)
        ]
        lines.append(f"| {' | '.join([*cells, f'{row.seconds:.0f}'])} |")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("runs", nargs="+", type=pathlib.Path)
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path())
    parser.add_argument("--korean", default="korean-exam", help="the text on the picture's x axis")
    parser.add_argument("--english", default="english-medical", help="... and on its y axis")
    given = parser.parse_args(arguments)
    rows = rows_of([read_run(path) for path in given.runs])
    picture = given.out / "study.svg"
    picture.write_text(
        draw_study(
            [(row.condition, row.losses[given.korean], row.losses[given.english]) for row in rows],
            given.korean,
            given.english,
        )
    )
    print(as_table(rows))
    print(f"\npicture: {picture}")


if __name__ == "__main__":
    main()
