"""The model card of an export: where the model comes from, what it read under which licences, how it scored.

    write_card(model, read_history(model), config, "float32", notes)        # README.md as text

Everything is read from the files that the run left: a run's summaries name the digest each phase started from,
so the chain that leads to this very model is followed rather than guessed. A model without a run says so.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any

from medkor_jax.data.licences import TRAINED_ON, is_non_commercial, licence_notes, licence_of
from medkor_jax.data.style import PLAIN
from medkor_jax.io.files import read_if_sealed
from medkor_jax.io.models import Model, read_ledger
from medkor_jax.io.weights import is_hub_id
from medkor_jax.model.config import ModelConfig


@dataclasses.dataclass(frozen=True)
class History:
    """phases: summaries in order, the first of the chain first, each with its `verdict` (None: missing).

    bases: what the base was made from, nearest first; the last one is what everything started from.
    """

    phases: tuple[dict[str, Any], ...]
    bases: tuple[dict[str, Any], ...]

    @property
    def origin(self) -> str:
        return self.bases[-1]["name"]

    @property
    def sources(self) -> list[dict[str, str]]:
        """What the chain's phases read, each once, in order; also what judged the last of them."""
        seen: dict[tuple[str, ...], dict[str, str]] = {}
        for phase in self.phases:
            for source in phase.get("sources", ()):
                known = ("use", "name", "path", "subset", "split", "part", "licence")
                seen.setdefault(tuple(source.get(name, "") for name in known), source)
        return list(seen.values())


def read_history(model: Model) -> History:
    return History(
        _phases(model.directory) if model.directory else (),
        tuple(_bases(model.base.name, model.base.digest)),
    )


def write_card(
    model: Model,
    history: History,
    config: ModelConfig,
    dtype: str,
    notes: Sequence[str],
    *,
    adapter_of: str = "",
) -> str:
    """Returns the card as Markdown, with the metadata block that the hub reads.

    adapter_of: the base by the name that `peft` loads, where the export is adapters alone.
    """
    parts = [
        _metadata(
            adapter_of or history.origin,
            "peft" if adapter_of else "transformers",
            any(is_non_commercial(source["licence"]) for source in _trained_on(model, history)),
        ),
        f"# {_title(model)}",
        f"{'LoRA adapters of a' if adapter_of else 'A'} Gemma 3 decoder for the Korean medical licensing exam, exported by "
        "medkor-jax. For research on the exam only: no source of medical advice.",
        _usage(adapter_of),
        "## Lineage\n\n" + _lineage(model, history, config, dtype),
        "## Scores\n\n" + _scores(history),
        "## Data and licences\n\n" + _data(model, history),
    ]
    if notes:
        parts.append(
            "## What to know\n\n" + "\n".join(f"- {note[0].upper()}{note[1:]}." for note in notes)
        )
    return "\n\n".join(parts) + "\n"


def _phases(directory: pathlib.Path) -> tuple[dict[str, Any], ...]:
    """Returns the summaries of the phases that lead to the model in `directory`, following digests back."""
    run = directory.parent
    ledger = read_ledger(
        run
    )  # in the order they ended; one whose end was not noted before its process died, last
    names = [entry["phase"] for entry in ledger if entry["event"] == "finished"]
    names += [entry["phase"] for entry in ledger]
    order = [name for name in dict.fromkeys(names) if (run / name / "summary.json").is_file()]
    summaries = {
        name: _read(run / name / "summary.json", "phase", "title", "model", "before", "after")
        for name in order
    }
    chain, at = [], directory.name
    while at in summaries:
        summary = summaries[at]
        verdict = run / at / "verdict.json"
        chain.append(
            summary
            | {"verdict": _read(verdict, "judgement", "waiver") if verdict.is_file() else None}
        )
        start = summary["before"]["digest"]
        before = [name for name in order[: order.index(at)] if summaries[name]["model"] == start]
        at = before[-1] if before else ""
    return tuple(reversed(chain))


def _bases(name: str, digest: str) -> list[dict[str, Any]]:
    """Returns the base and what each was merged from, as far back as the files are there."""
    found = [{"name": name, "digest": digest}]
    path = pathlib.Path(name) / "lineage.json"
    if path.is_file():
        lineage = _read(path)
        found[0]["made_by"] = lineage.get("made_by", "unknown")
        found[0]["name"] = "/".join(
            pathlib.Path(name).parts[-3:]
        )  # run/phase/base; the rest is about this machine
        if "base" in lineage:
            found += _bases(lineage["base"], lineage.get("base_digest", ""))
    return found


def _read(path: pathlib.Path, *keys: str) -> dict[str, Any]:
    """Returns a file of the run, sealed where this program sealed it. Raises: ValueError, naming it, if it is damaged."""
    return read_if_sealed(path, *keys)


def _title(model: Model) -> str:
    return "/".join(pathlib.Path(model.name).parts[-2:])


def _metadata(base_name: str, library: str, is_non_commercial_only: bool) -> str:
    # The name in the front matter links to the hub: only what is a name there may stand in it.
    is_on_hub = is_hub_id(base_name) and not pathlib.Path(base_name).exists()
    base = [f"base_model: {base_name}"] if is_on_hub else []
    tags = [
        f"library_name: {library}",
        "pipeline_tag: text-generation",
        "language:",
        "- ko",
        "- en",
    ]
    of_both = "that-of-the-base-model-and-of-the-data"
    name = f"non-commercial-and-{of_both}" if is_non_commercial_only else of_both
    licence = ["license: other", f"license_name: {name}"]
    return "\n".join(["---", *tags, *licence, *base, "tags:", "- medical", "- medkor-jax", "---"])


def _usage(adapter_of: str) -> str:
    base, adapters, wrapped = ".", "", ""
    if adapter_of:
        base, adapters, wrapped = (
            _place(adapter_of),
            "from peft import PeftModel\n",
            'model = PeftModel.from_pretrained(model, ".")\n',
        )
    return (
        f"```python\n{adapters}from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        f'tokenizer, model = AutoTokenizer.from_pretrained("{base}"), AutoModelForCausalLM.from_pretrained("{base}")\n{wrapped}'
        'inputs = tokenizer("(question)\\nA. ...\\nB. ...\\n\uc815\ub2f5\uff1a", return_tensors="pt")      # English: Answer:\n'
        "print(tokenizer.decode(model.generate(**inputs, max_new_tokens=4)[0]))\n```"
    )


def _lineage(model: Model, history: History, config: ModelConfig, dtype: str) -> str:
    kinds = "explicit layer_types" if config.n_layers != model.config.n_layers else "as the base"
    lines = [
        f"- Model digest: `{model.digest}`",
        f"- {config.n_params / 1e9:.2f}B parameters, {config.n_layers} layers ({kinds}; the base has {model.config.n_layers}), {dtype}",
    ]
    for base in history.bases:
        made = f", {base['made_by']}" if "made_by" in base else ""
        lines.append(f"- Base: {base['name']}{made}, digest `{base['digest']}`")
    for phase in history.phases:
        lines.append(f"- {phase['phase']}: {phase['title']}. {_verdict(phase['verdict'])}")
    if not history.phases:
        lines.append(
            "- No run: these are weights as they were given, without phases of this program."
        )
    return "\n".join(lines)


def _verdict(verdict: dict[str, Any] | None) -> str:
    if verdict is None:
        return "Verdict missing."
    waived = f" Waived: {verdict['waiver']['reason']}." if verdict.get("waiver") else ""
    return f"{verdict['judgement']['words']}{waived}"


def _scores(history: History) -> str:
    if not history.phases:
        return "Not measured: no run stands behind these weights."
    first, last = history.phases[0]["before"]["exams"], history.phases[-1]["after"]["exams"]
    lines = [
        "| exam | asked | before the run | this model | questions |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name, report in last.items():
        form = report.get("style", PLAIN)
        asked = f"{report['mode']}, {form} prompts, {report['shots']} shots, {report['split']}"
        before = _score(first[name]) if name in first else "not measured"
        lines.append(
            f"| {name} | {asked} | {before} | {_score(report)} | {_overall(report)['n']} |"
        )
    alarms = [f"- {name}: {alarm}" for name, report in last.items() for alarm in report["alarms"]]
    confidence = next(iter(last.values()))["confidence"] if last else 0.95
    lines += [
        "",
        f"Share right with its {confidence:.0%} interval; measured on the run's model, before it was exported.",
    ]
    return "\n".join([*lines, *(["", *alarms] if alarms else [])])


def _overall(report: dict[str, Any]) -> dict[str, Any]:
    return next(score for score in report["scores"] if score["group"] == "all")


def _score(report: dict[str, Any]) -> str:
    score = _overall(report)
    return f"{score['accuracy']:.1%} [{score['low']:.1%}, {score['high']:.1%}]"


def _trained_on(model: Model, history: History) -> list[dict[str, str]]:
    """Returns what the model learnt from, this run's and that of the weights it began with, each {name, licence, ...}."""
    before = [
        {"name": reading.source.name, "licence": licence_of(reading.source)}
        for reading in model.read
    ]
    return [*(s for s in history.sources if s["use"] == TRAINED_ON), *before]


def _data(model: Model, history: History) -> str:
    base = (
        f"The terms of the base model ({history.origin}) apply: for Gemma 3 the Gemma terms of use, for MedGemma the Health AI "
        "Developer Foundations terms."
    )
    notes = [
        f"- {note[0].upper()}{note[1:]}." for note in licence_notes(_trained_on(model, history))
    ]
    if not history.sources:
        return "\n".join([f"{base}\n\nWhat it was trained on is not recorded here.", *notes])
    lines = ["| source | kind | from | use | licence |", "| --- | --- | --- | --- | --- |"]
    for source in history.sources:
        part = " ".join(filter(None, (source.get("subset"), source["split"], source.get("part"))))
        revision = f", revision {source['revision'][:12]}" if source.get("revision") else ""
        made = ""
        if source.get("translated_to"):
            made = f", put into {source['translated_to']} by {source['translator']}"
        where = f"{_place(source['path'])} ({part}{revision}{made})"
        lines.append(
            f"| {source['name']} | {source['kind']} | {where} | {source['use']} | {source['licence'] or 'not stated'} |"
        )
    return "\n".join([base, "", *(["\n".join(notes), ""] if notes else []), *lines])


def _place(path: str) -> str:
    """Returns the path without the directories of the machine it was read on."""
    return pathlib.Path(path).name if pathlib.Path(path).is_absolute() else path
