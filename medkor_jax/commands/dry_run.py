"""`medkor run --dry-run`: what a run of a config would do, and everything that can be checked without fetching or training anything.

    words, report = rehearse(load_recipe("configs/pipeline.py"))
    print(report.table()); report.is_clear

The hub is asked what it has, and nothing is fetched: where it cannot be reached, or a source is not here yet, what could not be
checked is said. The checks are those that `medkor run` makes first (`run.readiness`), of what is here.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator

from medkor_jax.commands.capacity import disk_room, model_config, needed_bytes
from medkor_jax.commands.preflight import Finding, Preflight
from medkor_jax.data.check import Use
from medkor_jax.data.licences import told_licence
from medkor_jax.data.rows import Source
from medkor_jax.eval.verdict import GateClosed
from medkor_jax.io import download
from medkor_jax.plan.handcount import hand_flops
from medkor_jax.plan.planner import SECONDS_PER_DAY
from medkor_jax.plan.stages import PlannedStage, planned_stages
from medkor_jax.plan.topology import parse_topology
from medkor_jax.run.at_hand import NotHereError, is_at_hand
from medkor_jax.run.corpora import Corpora, uses_of
from medkor_jax.run.hub_named import Told, Wanted, ask_hub, named_on_hub, unsaid
from medkor_jax.run.phases import Phase, Recipe
from medkor_jax.run.readiness import LEAKS, TRANSLATIONS, checks, require_upstream
from medkor_jax.run.translated import find_translations, translators_of

NOT_CHECKED = "NOT CHECKED: "


def rehearse(recipe: Recipe) -> tuple[str, Preflight]:
    """Returns what would happen, in words, and what was found of it."""
    wanted = named_on_hub(recipe)
    told = ask_hub(wanted)
    corpora = Corpora(recipe.drop_bad, recipe.reasoning, say=False, only_here=True)
    with download.without_network():
        find_translations(recipe, corpora)
        loaded = {use: _loaded(corpora, use) for use in uses_of(recipe)}
        findings = [
            *_of_upstream(recipe),
            *_of_hub(wanted, told),
            *_of_sources(loaded),
            *_of_checks(recipe, corpora),
        ]
        lines = [
            *_hub_lines(wanted, told),
            "",
            *_phase_lines(recipe, loaded),
            "",
            *_size_lines(recipe),
            "",
        ]
    return "\n".join(lines), Preflight(tuple(findings))


def _loaded(corpora: Corpora, use: Use) -> int | Exception:
    """Returns how many documents the source gives as it is used, or why it gives none."""
    try:
        return len(corpora.of_use(use).rows)
    except (ValueError, OSError, RuntimeError) as error:
        return error


def _of_upstream(recipe: Recipe) -> Iterator[Finding]:
    """A phase that the run starts from and does not run itself, where it may not start from it."""
    try:
        require_upstream(recipe)
    except GateClosed as error:
        yield Finding("order", "", str(error))


def _of_hub(wanted: list[Wanted], told: list[Told]) -> Iterator[Finding]:
    """What stands between this machine and each gated repository; what the hub has not, or not under that name."""
    for one, said in zip(wanted, told, strict=True):
        trouble = "" if said.is_unreachable else said.words
        if said.facts and said.facts.is_gated and not one.is_here:
            try:
                download.check_access(one.id, one.kind)
            except ValueError as error:
                trouble = str(error)
        if trouble:
            yield Finding(f"hub {one.id}", "", trouble)


def _of_sources(loaded: dict[Use, int | Exception]) -> Iterator[Finding]:
    absent = []
    for use, found in loaded.items():
        what = f"{use.source.kind} {use.source.name}, {use.purpose}"
        if isinstance(found, NotHereError):
            absent.append(use.source.name)
        elif isinstance(found, Exception):
            yield Finding(what, "", str(found))
        else:
            yield Finding(what, f"{found:,} documents, read as the config says")
    if absent:
        named = ", ".join(dict.fromkeys(absent))
        words = f"{NOT_CHECKED}columns, rows and languages of {named}: they would be fetched"
        yield Finding("sources", words, is_open=True)


def _of_checks(recipe: Recipe, corpora: Corpora) -> Iterator[Finding]:
    """Everything that `medkor run` asks before it trains, as far as it can be asked of what is here."""
    missing = [use.source.name for use in uses_of(recipe) if not corpora.has(use.source)]
    uses = uses_of(recipe)
    awaited = dict.fromkeys(
        use.source.name for use in uses if corpora.translations.is_awaited(use.source)
    )
    unmade: dict[str, str] = {}
    for name, ask in checks(recipe, corpora).items():
        found, trouble, is_open = "holds", "", False
        try:
            found = (ask() or found).replace("\n", "\n    ")
            if name == TRANSLATIONS and awaited:
                words = f"whether the translations of {', '.join(awaited)} pass their checks: the run makes them"
                found, is_open = f"{found}\n    {NOT_CHECKED}{words}", True
        except NotHereError as error:
            found, is_open = f"{NOT_CHECKED}{error}", True
        except download.HubUnreachableError:
            found, is_open = f"{NOT_CHECKED}{recipe.weights} is not here yet", True
        except (ValueError, OSError, RuntimeError) as error:
            trouble = str(error)
        if name == LEAKS and missing and not trouble:
            words = f"between what is here there are none; {NOT_CHECKED}{', '.join(dict.fromkeys(missing))}"
            found, is_open = words, True
        if is_open and "/" in name:
            unmade[name] = found.removeprefix(NOT_CHECKED)
        else:
            yield Finding(name, found, trouble, is_open or NOT_CHECKED in found)
    if unmade:
        of_reason: dict[str, list[str]] = {}
        for name, why in unmade.items():
            of_reason.setdefault(why, []).append(name)
        said = "\n    ".join(f"{', '.join(names)}: {why}" for why, names in of_reason.items())
        yield Finding(
            "batches", f"{NOT_CHECKED}whether the data fit them\n    {said}", is_open=True
        )


def _hub_lines(wanted: list[Wanted], told: list[Told]) -> list[str]:
    if not wanted:
        return ["Nothing is taken from the hub."]
    lines = ["From the hub (medkor data fetch brings it all, and pins it):"]
    for one, said in zip(wanted, told, strict=True):
        lines += [f"  {line}" for line in one.lines(said.facts, is_here=one.is_here)]
    return lines + [f"  NOT KNOWN: {words}" for words in unsaid(told) if words]


def _phase_lines(recipe: Recipe, loaded: dict[Use, int | Exception]) -> list[str]:
    """Returns what each phase would do: where it starts, what it reads under which licence, its steps and what it asks."""
    rows = {use.source: found for use, found in loaded.items() if isinstance(found, int)}
    lines = [f"What would happen, into {recipe.run_dir}:"]
    for name, sources in translators_of(recipe).items():
        named = ", ".join(source.name for source in sources)
        lines.append(
            f"  before all phases: {named} translated by {name}, unless that was done before"
        )
    for phase in recipe.in_force:
        lines.append(
            f"  {phase.name}: {phase.title}; from {' or '.join(recipe.upstream_of(phase))}"
        )
        for stage, what in ((phase.train, "trains"), (phase.remedy, "remedy trains")):
            if not stage.steps:
                continue
            tokens = stage.steps * stage.batch_size * stage.seq_len
            rounds = f", up to {phase.gate.rounds} times" if what != "trains" else ""
            lines.append(
                f"    {what} {', '.join(stage.trees)}: {stage.steps} steps of {stage.batch_size} x {stage.seq_len} tokens, "
                f"{tokens / 1e6:,.1f}M at most{rounds}"
            )
            lines += [f"      {_source_line(source, rows)}" for source in stage.data]
        if phase.merge:
            lines.append("    merges its adapter into a base of its own")
        lines.append(f"    {_asked(recipe, phase)}")
    for exam in recipe.final if recipe.phases[-1].name in recipe.run else ():
        lines.append(f"  at the end, once: {_source_line(exam.source, rows)}")
    return lines


def _source_line(source: Source, rows: dict[Source, int]) -> str:
    n = f"{rows[source]:,} documents" if source in rows else "not here yet"
    return f"{source.name} ({source.path}): {n}; {told_licence(source)}"


def _asked(recipe: Recipe, phase: Phase) -> str:
    exams = ", ".join(exam.source.name for exam in recipe.exams_of(phase))
    return f"judged by {phase.exam}, {phase.gate.metric}, {phase.gate.reading} {phase.gate.threshold:g}; measured: {exams}"


def _size_lines(recipe: Recipe) -> list[str]:
    """Returns how large the model is, what is written, and the least time that the products alone would take."""
    try:
        config = model_config(recipe)
    except (ValueError, OSError) as error:
        return [f"How large, how long: {NOT_CHECKED}{error}"]
    params, billion = config.n_params, 1e9
    lines = [
        f"How large: {recipe.weights} has {params / billion:.2f}B parameters, {params * 2 / billion:.1f} GB in bfloat16; "
        f"the run writes {needed_bytes(recipe) / billion:.1f} GB"
    ]
    if not is_at_hand(recipe.weights):
        lines[0] += " (by the published sizes of that name: it is not here yet)"
    stages = planned_stages(recipe, config)
    if not stages:
        return lines
    of_stage: Callable[[PlannedStage], float] = lambda stage: (
        stage.steps * sum(run.per_update * hand_flops(run.program, config) for run in stage.runs)
    )
    flops = math.fsum(map(of_stage, stages))
    tokens = sum(stage.steps * stage.tokens for stage in stages)
    said = f"How long: {tokens / 1e6:,.0f}M tokens and {flops / 1e18:,.2f} EFLOP in training, every remedy once"
    if not recipe.topology:
        return [
            *lines,
            f"{said}; the config names no machine: `medkor plan --topology auto` finds one",
        ]
    machine = parse_topology(recipe.topology)
    days = flops / (machine.chip.flops * machine.n_chips) / SECONDS_PER_DAY
    return [
        *lines,
        f"{said}: at least {days * 24:,.1f} h on {recipe.topology} at its peak; `medkor plan` says more",
    ]


def show(recipe: Recipe) -> int:
    """Prints what would happen and what was found; returns 0 if nothing is wrong."""
    words, found = rehearse(recipe)
    report = dataclasses.replace(found, findings=(*found.findings, _room(recipe)))
    print(words)
    print(report.table())
    n = sum(finding.is_open for finding in report.findings)
    if n:
        print(
            f"{n} checks (?) could not be made, or not wholly; once `medkor data fetch` has brought what they need, they can"
        )
    print("nothing was fetched, trained or written")
    return 0 if report.is_clear else 1


def _room(recipe: Recipe) -> Finding:
    try:
        with download.without_network():
            model_config(recipe)
    except (ValueError, OSError) as error:
        return Finding("disk", f"{NOT_CHECKED}{error}", is_open=True)
    try:
        return Finding("disk", disk_room(recipe))
    except (ValueError, OSError) as error:
        return Finding("disk", "", str(error))
