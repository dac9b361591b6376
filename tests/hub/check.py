"""Compares what configs say of public data with the real sets on the hub: for whoever has the network. No test runs it there.

    python tests/hub/check.py configs/pipeline.py           # or several configs; default: configs/pipeline.py

For each data set that the configs name it asks the hub and prints:

    revision    the commit that it has now, and whether its terms have to be accepted first
    licence     of its card, beside what the config says; one that begins otherwise is marked
    splits      of the subset; a split that the config names and the hub has not is marked
    columns     of its first rows, beside those of the stand-in (`standins.py`) that tests read; differences are marked
    first rows  read by the config's own reader, fields and rationale included: how many are good, what is wrong with the
                others, which way round Korean and English stand, and the first of them, for you to look at

and whether each column of `part_by` is there. It streams FIRST_ROWS rows a source and downloads no set whole. The exit code is 1 if
anything is marked. What it cannot see: rows further on (`medkor data check` reads them all), and what a licence allows.
"""

import dataclasses
import itertools
import json
import pathlib
import re
import sys
import tempfile

ROOT = pathlib.Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from medkor_jax.data.check import loader_of  # noqa: E402
from medkor_jax.data.parts import is_held_out  # noqa: E402
from medkor_jax.io import download  # noqa: E402
from medkor_jax.run.config_file import load_recipe  # noqa: E402
from medkor_jax.run.corpora import uses_of  # noqa: E402
from medkor_jax.run.hub_named import DATASET, named_on_hub  # noqa: E402
from tests.hub.standins import standins  # noqa: E402

FIRST_ROWS = 50
MARK = "  !! "


def main(paths):
    """Returns how many things were marked."""
    marked = 0
    for path in paths:
        recipe = load_recipe(path)
        for wanted in named_on_hub(recipe):
            if wanted.kind != DATASET:
                continue
            print(f"\n{wanted.id}")
            lines = check_set(recipe, wanted)
            print("\n".join(lines))
            marked += sum(line.startswith(MARK) for line in lines)
    print(f"\n{marked} things differ from what the configs say (marked !!)")
    return marked


def check_set(recipe, wanted):
    """Returns lines about one data set; what differs begins with MARK."""
    lines = []
    try:
        facts = download.facts_of(wanted.id, wanted.kind, wanted.revision)
        lines.append(f"  revision {facts.revision}{', gated' if facts.is_gated else ''}")
        ours = wanted.sources[0].licence
        mark = "  " if same_licence(ours, facts.licence) else MARK
        lines.append(
            f"{mark}licence: the card says {facts.licence or 'nothing'}, the config {ours!r}"
        )
    except ValueError as error:
        return [f"{MARK}{error}"]
    for use in uses_of(recipe):
        if use.source in wanted.sources:
            lines += check_source(recipe, use, facts.revision)
    return lines


def check_source(recipe, use, revision):
    """Returns lines about one source: its split, its columns and what its first rows are read as."""
    import datasets

    source, subset = use.source.original, use.source.subset or None
    head = f"{source.name} ({use.purpose}, {subset or 'default'} {source.split})"
    try:
        splits = datasets.get_dataset_split_names(source.path, subset, revision=revision)
        stream = datasets.load_dataset(
            source.path, subset, split=source.split, streaming=True, revision=revision
        )
        rows = list(itertools.islice(stream, FIRST_ROWS))
    except Exception as error:  # the library's own are many
        return [f"{MARK}{head}: {error}"]
    found = list(rows[0]) if rows else []
    lines = [f"  {head}: splits {', '.join(splits)}; columns {', '.join(found)}"]
    known = standins().get(source.path)
    if known and (source.subset, source.split) in known.rows:
        expected = set(known.rows[source.subset, source.split][0])
        if expected != set(found):
            lines.append(
                f"{MARK}{head}: not in the stand-in {sorted(set(found) - expected)}, only in the stand-in {sorted(expected - set(found))}"
            )
    try:
        for row in rows[:1] if source.part else ():
            is_held_out(row, source)
        loaded = _read(recipe, use, rows)
    except ValueError as error:
        return [*lines, f"{MARK}{head}: {error}"]
    if loaded.bad:
        lines.append(
            f"{MARK}{head}: {len(loaded.bad)} of {len(rows)} first rows are bad, such as {loaded.bad[0]}"
        )
    lines += [f"  {head}: {note}" for note in loaded.notes]
    shown = (
        json.dumps(repr(loaded.rows[0]), ensure_ascii=False)[1:600] if len(loaded.rows) else "none"
    )
    return [*lines, f"  {head}: {len(loaded.rows)} read; the first: {shown}"]


def _read(recipe, use, rows):
    """Returns the rows as the config's own reader reads them, from a file of JSON Lines."""
    with tempfile.TemporaryDirectory() as directory:
        file = pathlib.Path(directory) / "first.jsonl"
        lines = (json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in rows)
        file.write_text("".join(lines), "utf-8")
        source = dataclasses.replace(
            use.source.original,
            path=str(file),
            held_share=0.0,
            part="",
            skip=0,
            limit=0,
            revision="",
        )
        return loader_of(use, recipe.reasoning)(source, drop_bad=True)


def same_licence(ours, hub):
    """Whether the config's licence begins with that of the card: "CC BY-NC 2.0" and "cc-by-nc-2.0"."""
    plain = lambda said: re.sub(r"[^a-z0-9]+", "-", said.casefold()).strip("-")
    return bool(hub) and plain(ours).startswith(plain(hub))


if __name__ == "__main__":
    sys.exit(bool(main(sys.argv[1:] or [str(ROOT / "configs" / "pipeline.py")])))
