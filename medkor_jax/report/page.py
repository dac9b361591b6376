"""The report itself: report.html, report.md and report.json of a run.

    write_report(pathlib.Path("runs/quickstart"))           # runs/quickstart/report/report.html

The page is one file without a network. What a run holds is text in it, never markup: jinja2 escapes it, the examples are
JSON that a script puts in as text, and a content security policy runs no other script.
"""

from __future__ import annotations

import datetime
import json
import pathlib
from typing import Any

from medkor_jax.bar import in_words
from medkor_jax.data.contents import checksum
from medkor_jax.io.files import write_atomically
from medkor_jax.report.files import RunFiles, read_run
from medkor_jax.report.opening import make_opening
from medkor_jax.report.pictures import draw
from medkor_jax.report.sections import make_sections

FORMAT = 1


def write_report(
    directory: pathlib.Path, out: pathlib.Path | None = None, price: float | None = None
) -> pathlib.Path:
    """Writes the three files and returns the page's path. out: default RUN/report. price: of an hour of the machine.

    Raises: ValueError if `directory` holds no run.
    """
    run = read_run(directory)
    place = directory / "report" if out is None else out
    found = facts_of(run, price)
    write_atomically(place / "report.json", json.dumps(found, ensure_ascii=False, indent=1) + "\n")
    write_atomically(place / "report.md", as_markdown(found))
    write_atomically(place / "report.html", as_page(found))
    return place / "report.html"


def facts_of(run: RunFiles, price: float | None = None) -> dict[str, Any]:
    """Returns all that a report says, as JSON types."""
    return {
        "format": FORMAT,
        "run": run.name,
        "state": run.on_disk.state,
        "written": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "opening": make_opening(run, price),
        "sections": make_sections(run, price),
    }


def as_page(found: dict[str, Any]) -> str:
    """Returns the page."""
    import jinja2
    from markupsafe import Markup

    sections = found["sections"]
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(pathlib.Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
    )
    examples = json.dumps(sections["examples"], ensure_ascii=False)
    pictures = draw(found["opening"], sections)
    drawn = {
        name: Markup(made)
        if isinstance(made, str)
        else [(title, Markup(svg)) for title, svg in made]
        for name, made in pictures.items()
    }
    return environment.get_template("page.html.jinja").render(
        {name: value for name, value in sections.items() if name != "examples"},
        name=found["run"],
        state=found["state"],
        written=found["written"].replace("T", " ").removesuffix("+00:00") + " UTC",
        about=f"{len(sections['phases'])} of {len(sections['planned']) or '?'} phases begun",
        opening=found["opening"],
        pictures=drawn,
        begun=[phase["name"] for phase in sections["phases"]],
        has_memory=any(row["device_bytes"] is not None for row in sections["costs"]),
        has_price=any(row["cost"] is not None for row in sections["costs"]),
        # In a script nothing is escaped: "<" as JSON spells it ends no element and opens none.
        examples_json=Markup(
            examples.replace("<", "\\u003c")
            .replace("\u2028", "\\u2028")
            .replace("\u2029", "\\u2029")
        ),
        nonce=checksum(found["written"])[:16],
        percent=_percent,
        score=_score,
        nats=lambda x: "" if x is None else f"{x:.3f}",
        duration=lambda s: "" if s is None else in_words(s),
        size=lambda n: f"{n / 1e6:.1f} MB",
    )


def as_markdown(found: dict[str, Any]) -> str:
    """Returns the opening and the tables as Markdown."""
    sections = found["sections"]
    lines = [f"# {_plain(found['run'])}", "", f"{found['state']}; {found['written']}", ""]
    for one in found["opening"]["answers"]:
        lines += [f"**{one['question']}** {_plain(one['answer'])}", ""]
        lines += [f"- {_plain(line)}" for line in one["details"]] + [""]
    lines += ["| phase | verdict | time | tokens trained |", "| --- | --- | --- | --- |"]
    for phase, cost in zip(sections["phases"], sections["costs"]):
        time = "" if cost["seconds"] is None else in_words(cost["seconds"])
        lines.append(
            f"| {_plain(phase['name'])} | {phase['state']} | {time} | {cost['tokens']:,.0f} |"
        )
    lines += ["", "| exam | of | first | now | interval |", "| --- | --- | --- | --- | --- |"]
    for row in sections["exams"]:
        score, before = row["score"], row["before"]
        of = "all" if score["group"] == "all" else f"{score['exam']} {score['year'] or ''}".strip()
        lines.append(
            f"| {_plain(row['name'])} | {_plain(of)} | {_percent(before['accuracy']) if before else ''} | "
            f"{_percent(score['accuracy'])} of {score['n']} | [{_percent(score['low'])}, {_percent(score['high'])}] |"
        )
    lines += ["", *(f"{_plain(note)}\n" for note in sections["lineage"]["licences"])]
    return "\n".join(lines).rstrip() + "\n"


def _plain(text: str) -> str:
    """Returns text that Markdown shows as it is: no markup, one line, no column's end."""
    shown = "".join(f"\\{c}" if c in "\\`*_{}[]<>#|" else c for c in str(text))
    return " ".join(shown.split())


def _percent(share: float) -> str:
    return f"{share:.1%}"


def _score(score: dict[str, Any] | None) -> str:
    return (
        ""
        if score is None
        else f"{score['accuracy']:.1%} of {score['n']} [{score['low']:.1%}, {score['high']:.1%}]"
    )
