"""One named source of data, as a config says it, and what it is called in reports.

    Source("doctor-train", "exam", "sean0042/KorMedMCQA", subset="doctor", licence="CC BY-NC 2.0")
    Source("guidelines", "text", "epfl-llm/guidelines", fields=("clean_text",), held_share=0.02, part="train")

What it does not do: read anything (`rows`), or decide which rows belong to a part (`parts`).
"""

from __future__ import annotations

import dataclasses
import pathlib
import re
from collections.abc import Mapping
from typing import Annotated, Any

from medkor_jax.data.cells import composed
from medkor_jax.data.files import SUFFIXES
from medkor_jax.data.language import LANGUAGES
from medkor_jax.data.named_exams import NAMED, check_asked_as

KINDS = dict(text="text", chat="text", exam="exams", reasoning="reasoning", translation="pairs")
"""What a source may be, and the module of this room whose `load` reads it."""
OF_QUESTIONS = ("exam", "reasoning")  # kinds whose rows are questions
EMBEDDED = "embedded"  # the exam, texts and pairs that come with this package; the model of that name: `io.embedded_model`
PARTS = ("", "train", "held_out")
LOSSES = ("", "next_token", "each_layer")
ANSWERED_BY = dict(letter=OF_QUESTIONS, text=("exam",), in_turn=("reasoning",))
"""How an answer may be taught, and of which kinds."""

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_OPTIONAL = (
    "rationale",
    "held_share",
    "part",
    "part_by",
    "asked_as",
    "translated_to",
    "loss",
    "orders",
    "answered_by",
)
_UNSAID = ("revision", "translator")  # digests of the rows tell more
_OF_NAMES = ("fields", "rationale", "part_by")


@dataclasses.dataclass(frozen=True)
class Source:
    """One named source of data, as configured."""

    name: str
    """The name that a config's mapping has for it; in records, leaks and tables."""
    kind: str
    """What a row is: "text", "chat", "exam", "reasoning" or "translation"."""
    path: str
    """"embedded", a file (CSV, TSV, JSON, JSON Lines, Parquet), a directory laid out like a hub
    data set, a hub id, or of questions an exam's name (kormedmcqa, medqa, medqa-5, mmlu-medical,
    medmcqa), which brings language, licence, answers_from and asked_as."""
    split: str = "train"
    """Split of a hub data set, or of the embedded exam."""
    subset: str = ""
    """Subset (configuration) of a hub data set, such as "doctor"; of embedded texts and pairs,
    whose facts they state ("valid+test/antidote,hormone": of which splits and relations, as `split` of
    the embedded exam); of that exam, "other" asks its held-out facts in other words, "both" in both."""
    language: str = ""
    """"ko", "en", or "" to take it from each row."""
    weight: Annotated[float, "> 0"] = 1.0
    """Share of the documents (not of the tokens) drawn from this source, relative to the others."""
    loss: str = ""
    """Which of the stage's losses its tokens carry: "next_token" to be learnt, "each_layer" to be
    held to the reference, "" for all. English "each_layer" beside Korean "next_token" holds English
    from the first step."""
    licence: str = ""
    """Its licence, shown before training and written into verdict, summary and model card; one that
    says "NC" or "non-commercial" makes the model so. Changes nothing that is trained."""
    revision: str = ""
    """Commit, tag or branch of a hub data set. "": what `medkor data fetch` wrote into the run's
    data-lock.json, and without one the newest."""
    fields: tuple[str, ...] = ()
    """Column names, in the order that the kind expects them. (): the usual ones. Of questions: the
    question ("case+question" joins two columns), then the options (one column each, or one that
    holds them all), then the answer."""
    orders: Annotated[int, ">= 1"] = 1
    """How many orders of its options each question is taught in, the file's own the first: with one, a
    model can learn the letter of a question instead of what the letter stands for. A question whose
    options or reasoning speak of options by letter, number or place keeps the one."""
    answered_by: str = "letter"
    """How a question's answer is learnt. "letter": behind its options, or behind the reasoning. Of an
    exam also "text": that of its right option behind the question alone, as the exam modes "cloze" and
    "cloze_norm" ask. Of reasoning also "in_turn": it ends by naming the options one after another up to
    the right one ("A. thiamine: no. B. vitamin K: yes."), from which a model reads its letter."""
    rationale: tuple[str, ...] = ()
    """Columns that hold the reasoning of a question, joined by a line each. (): cot or rationale. The
    embedded exam has "rationale", which places every option, and "right", which states one fact."""
    held_share: Annotated[float, ">= 0", "< 1"] = 0.0
    """Share of the rows that are held out, chosen by a hash of each row and never by its place."""
    part: str = ""
    """"train": the rows outside that share, "held_out": those in it, "": all rows."""
    part_by: tuple[str, ...] = ()
    """Columns that decide where a row belongs: rows alike in them stay together. (): all columns."""
    limit: Annotated[int, ">= 0"] = 0
    """Rows kept, from the first. 0: all."""
    skip: Annotated[int, ">= 0"] = 0
    """Questions passed over before that, so that two exams of one file share none."""
    answers_from: int | None = None
    """What the numbers of an exam's keys count from, 0 or 1. None: the file tells."""
    asked_as: str = ""
    """Form of an exam's prompts: "" KorMedMCQA's; "medqa", "medmcqa" or "mmlu/SUBJECT", as
    lm-evaluation-harness asks those."""
    translated_to: str = ""
    """"en" or "ko": the run translates the exam's questions into it before it trains anything, and
    reads those whose translation passes its checks; `language` is that of the rows as they are
    given. "": they are read as they are."""
    translator: str = ""
    """Weights that translate, named as the run's `weights` are, such as a TranslateGemma's hub id.
    "": the run's own, as they are before any training."""

    def __post_init__(self) -> None:
        if self.path in NAMED and self.kind in OF_QUESTIONS:
            self._take_named()
        if wrong := self._wrong():
            raise ValueError(f"source {self.name!r}: {wrong}")
        for name in _OF_NAMES:
            object.__setattr__(self, name, tuple(map(composed, getattr(self, name))))

    def _take_named(self) -> None:
        """Puts the data set in the place of the exam's name, and what belongs to it where nothing is said.

        Raises: ValueError for a subset that is not there.
        """
        named = NAMED[self.path]
        for key, value in named.settings(self.path, self.subset).items():
            if getattr(self, key) in ("", None):
                object.__setattr__(self, key, value)
        object.__setattr__(self, "path", named.path)

    def _wrong(self) -> str:
        """Returns what is wrong with the settings, "" if nothing is. Raises: ValueError for a form that is none."""
        is_of_questions = self.kind in OF_QUESTIONS
        check_asked_as(self.asked_as)
        if self.asked_as and not is_of_questions:
            return f"asked_as is {self.asked_as!r} of kind {self.kind!r}; only questions are asked"
        if self.skip < 0 or (self.skip and not is_of_questions):
            return f"skip is {self.skip} of kind {self.kind!r}, expected 0, or more for questions"
        if self.answers_from not in (None, 0, 1):
            return f"answers_from is {self.answers_from!r}, expected 0 or 1"
        if self.kind not in KINDS:
            return f"kind is {self.kind!r}, expected one of {', '.join(KINDS)}"
        if self.language not in ("", *LANGUAGES):
            return f"language is {self.language!r}, expected 'ko', 'en' or ''"
        if not self.weight > 0:
            return (
                f"weight is {self.weight}, expected more than 0; "
                "leave the source out of the list to switch it off"
            )
        if self.orders < 1 or (self.orders > 1 and not is_of_questions):
            return (
                f"orders is {self.orders} of kind {self.kind!r}, expected 1, or more for questions"
            )
        if self.answered_by not in ANSWERED_BY:
            return f"answered_by is {self.answered_by!r}, expected one of {', '.join(ANSWERED_BY)}"
        if self.answered_by != "letter" and self.kind not in ANSWERED_BY[self.answered_by]:
            return (
                f"answered_by is {self.answered_by!r} of kind {self.kind!r}; "
                f"it is for kind {ANSWERED_BY[self.answered_by][0]!r}"
            )
        if self.answered_by == "text" and self.orders > 1:
            return f"answered_by is 'text' in {self.orders} orders; options are then not shown: leave orders out"
        if self.loss not in LOSSES:
            return f"loss is {self.loss!r}, expected 'next_token', 'each_layer' or '' for all"
        if self.rationale and not is_of_questions:
            return f"rationale is {self.rationale} of kind {self.kind!r}; only questions have one"
        if self.part not in PARTS:
            return f"part is {self.part!r}, expected 'train', 'held_out' or ''"
        if self.part and self.path == EMBEDDED:
            return (
                f"part is {self.part!r}; what is embedded has its own splits: use split or subset"
            )
        if bool(self.part) != bool(self.held_share):
            return (
                f"part is {self.part!r} and held_share {self.held_share:g}: give both, such as "
                "part='train' and held_share=0.02, or neither"
            )
        return self._wrong_translation()

    def _wrong_translation(self) -> str:
        if not self.translated_to:
            named = f"translator is {self.translator!r} and translated_to ''"
            return f"{named}: say into which language, 'ko' or 'en'" if self.translator else ""
        if self.translated_to not in LANGUAGES:
            return f"translated_to is {self.translated_to!r}, expected 'ko', 'en' or ''"
        if self.kind != "exam":
            return f"translated_to of kind {self.kind!r}; only an exam's questions are translated"
        if self.language == self.translated_to:
            return (
                f"language and translated_to are both {self.language!r}; `language` is that of the "
                "rows as they are given: there is nothing to translate"
            )
        return ""

    @property
    def original(self) -> Source:
        """The rows that are translated, as they are given; itself where nothing is."""
        return dataclasses.replace(self, translated_to="", translator="")

    def translation_in(self, path: pathlib.Path) -> Source:
        """Returns the source that reads the translation from the file that the run made of it."""
        return Source(
            self.name,
            self.kind,
            str(path),
            language=self.translated_to,
            weight=self.weight,
            orders=self.orders,
            answered_by=self.answered_by,
            loss=self.loss,
            licence=self.licence,
        )

    def settings(self) -> dict[str, Any]:
        """Returns the keys as plain data, without those of `_UNSAID` and without those of `_OPTIONAL` that are off: what was written
        before they existed still says the same."""
        said = dataclasses.asdict(self)
        off = {f.name: f.default for f in dataclasses.fields(self) if f.name in _OPTIONAL}
        return {k: v for k, v in said.items() if k not in _UNSAID and (k not in off or v != off[k])}

    @classmethod
    def from_json(cls, said: Mapping[str, Any]) -> Source:
        """Returns the source that dataclasses.asdict, or JSON made of it, tells of. Raises: TypeError, KeyError."""
        names = {name: tuple(said[name]) for name in _OF_NAMES if name in said}
        return cls(**{**said, **names})


def is_hub_id(path: str) -> bool:
    return bool(_HUB_ID.fullmatch(path)) and not path.removesuffix(".gz").endswith(SUFFIXES)


def file_label(source: Source) -> str:
    """Returns the name that a person finds the file by: its path, or the hub id with subset and split."""
    if pathlib.Path(source.path).is_dir() or (
        is_hub_id(source.path) and not pathlib.Path(source.path).is_file()
    ):
        return " ".join(part for part in (source.path, source.subset, source.split) if part)
    return source.path


def part_name(source: Source) -> str:
    """Returns the name of the split for ids: the file's stem, or the configured split."""
    path = pathlib.Path(source.path)
    return path.name.split(".")[0] if path.is_file() else source.split
