r"""Public exams by name, the text that lm-evaluation-harness 0.4.13 asks them by, and which published figure each can stand beside.

    named = NAMED["medqa"]
    named.path, named.split, named.mode, named.shots        # GBaker/MedQA-USMLE-4-options, test, letter, 0
    FORMS["medqa"].format(stem="Which ...?", options="A. x\nB. y\n", due="Answer:")

A `Source` whose path is one of these names reads the data set of that name, and its questions are asked in that form, wherever they
are: `medkor eval --exam medqa`, or `path="medqa"` in a config. What it does not do: fetch, or read columns (`exam_rows`).
"""

from __future__ import annotations

import dataclasses
from typing import Any

# {stem}: the question as it stands; {due}: what an answer follows. "" is KorMedMCQA's (v3.0) and its English twin, which
# strip the question, as do the tasks of MMLU.
FORMS = {
    "": "{stem}\n{options}{due}",
    "medqa": "Question: {stem}\n{options}{due}",
    "medmcqa": "Question: {stem}\nChoices:\n{options}{due}",
    "mmlu": "{stem}\n{options}{due}",
}
STRIPPED = ("", "mmlu")
_ABOUT = "The following are multiple choice questions (with answers) about {}.\n\n"
MMLU_MEDICAL = (
    "anatomy",
    "clinical_knowledge",
    "college_biology",
    "college_medicine",
    "medical_genetics",
    "professional_medicine",
)


@dataclasses.dataclass(frozen=True)
class NamedExam:
    """One exam as `medkor eval` puts it to a model where nothing else is said.

    subsets: those there are, () where the data set has none; usual: those that are asked. fewshot: the split of the shots, ""
    where it has none of its own. beside: which published figure the score can stand beside, in words.
    """

    path: str
    split: str
    language: str
    licence: str
    mode: str
    beside: str
    asked_as: str = ""
    shots: int = 0
    fewshot: str = ""
    subsets: tuple[str, ...] = ()
    usual: tuple[str, ...] = ("",)
    answers_from: int | None = None

    def chosen(self, subset: str) -> tuple[str, ...]:
        """Returns the subsets that are meant: the usual ones of "", every one of "all", else the one named.

        Raises: ValueError for one that is not there.
        """
        if not subset:
            return self.usual
        if subset == "all" and self.subsets:
            return self.subsets
        if subset not in self.subsets:
            there = (
                f"one of {', '.join(self.subsets)}, or all"
                if self.subsets
                else "none: it has one part"
            )
            raise ValueError(f"subset is {subset!r} of {self.path}, expected {there}")
        return (subset,)

    def settings(self, name: str, subset: str) -> dict[str, Any]:
        """Returns the keys that a source of this exam has where it does not say them itself.

        Raises: ValueError if the subset is not there, or is not said where there are several.
        """
        subset, *more = self.chosen(subset)
        if more:
            raise ValueError(
                f"path {name!r} has {len(more) + 1} subsets, a source each: set subset to one of {', '.join(self.subsets)}"
            )
        asked_as = f"{self.asked_as}/{subset}" if self.asked_as == "mmlu" else self.asked_as
        return dict(
            subset=subset, language=self.language, licence=self.licence, asked_as=asked_as, answers_from=self.answers_from,
        )  # fmt: skip


NAMED = {
    "kormedmcqa": NamedExam(
        "sean0042/KorMedMCQA",
        split="test",
        language="ko",
        licence="CC BY-NC 2.0",
        mode="harness",
        shots=5,
        fewshot="fewshot",
        subsets=("doctor", "nurse", "pharm", "dentist"),
        usual=("doctor",),
        beside="figures made by kormedmcqa v3.0 of lm-evaluation-harness, 5 shots (--style plain; --style chat for those made "
        "with --apply_chat_template --fewshot_as_multiturn=False). Earlier versions of the task read answers more strictly",
    ),
    "medqa": NamedExam(
        "GBaker/MedQA-USMLE-4-options",
        split="test",
        language="en",
        licence="CC BY 4.0",
        mode="letter",
        asked_as="medqa",
        beside="figures made by medqa_4options of lm-evaluation-harness (acc). MedGemma's own (64.4, 87.7; 1.5: 69.1) were written "
        "answers to another prompt, in chat, in part after thinking: compare with care",
    ),
    "medqa-5": NamedExam(
        "lavita/medical-qa-datasets",
        split="test",
        language="en",
        licence="not seen; MedQA's own repository says MIT",
        mode="letter",
        asked_as="medqa",
        subsets=("med-qa-en-5options-source",),
        usual=("med-qa-en-5options-source",),
        beside="no published figure: MedGemma's are of four options, and lm-evaluation-harness has no task of five. The prompt is "
        "medqa_4options's with one more line",
    ),
    "mmlu-medical": NamedExam(
        "cais/mmlu",
        split="test",
        language="en",
        licence="MIT",
        mode="letter",
        asked_as="mmlu",
        fewshot="dev",
        subsets=MMLU_MEDICAL,
        usual=MMLU_MEDICAL,
        answers_from=0,
        beside="figures made by the six mmlu_* tasks of lm-evaluation-harness (acc), 0 shots or 5, subject by subject. MedGemma's "
        "MMLU Med (70.0, 87.0; 1.5: 69.6) was written answers to another prompt, over subjects that its report does not list",
    ),
    "medmcqa": NamedExam(
        "openlifescienceai/medmcqa",
        split="validation",
        language="en",
        licence="Apache 2.0",
        mode="letter",
        asked_as="medmcqa",
        answers_from=0,
        beside="figures made by medmcqa of lm-evaluation-harness (acc, validation, as the test has no keys). MedGemma's own (55.7, 74.2; "
        "1.5: 59.8) were written answers to another prompt, and its report says test split",
    ),
}  # fmt: skip


def check_asked_as(asked_as: str) -> None:
    """Raises: ValueError for what is no form of a prompt."""
    form, _, subject = asked_as.partition("/")
    if form not in FORMS or (form == "mmlu") != bool(subject):
        raise ValueError(
            f"asked_as is {asked_as!r}, expected '' or one of 'medqa', 'medmcqa', 'mmlu/SUBJECT' such as 'mmlu/anatomy'"
        )


def preamble_of(asked_as: str) -> str:
    """Returns what stands in front of all else in this form, "" in most."""
    form, _, subject = asked_as.partition("/")
    return _ABOUT.format(subject.replace("_", " ")) if form == "mmlu" else ""
