"""Stand-ins for the hub's data sets: small directories in the columns, splits and subsets of the real ones, made of the embedded exam.

    write_standins(root)            # root/sean0042/KorMedMCQA/..., root/epfl-llm/guidelines/..., each with its README.md
    monkeypatch.chdir(root)         # "sean0042/KorMedMCQA" then names the directory, as it names the hub's set elsewhere

The columns are those that cards, viewers and other people's code show (some of them nobody here has seen: `check.py` compares them with
the real sets, by whoever has the network). The contents are ours and say nothing of the real ones.
"""

import dataclasses
import itertools
import json
import pathlib

from medkor_jax.data import embedded
from medkor_jax.data.question import LETTERS


@dataclasses.dataclass(frozen=True)
class Standin:
    """One data set. rows: {(subset, split): rows}; subset "" is the hub's "default"."""

    licence: str
    rows: dict[tuple[str, str], list[dict]]


def write_standins(root: pathlib.Path) -> dict[str, Standin]:
    """Returns what was written below `root`, by id."""
    for name, standin in (found := standins()).items():
        place = root / name
        configs: dict[str, list[dict]] = {}
        for (subset, split), rows in standin.rows.items():
            file = place / (subset or "data") / f"{split}-00000-of-00001.jsonl"
            file.parent.mkdir(parents=True, exist_ok=True)
            lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            file.write_text("".join(lines), "utf-8")
            path = file.relative_to(place).as_posix()
            configs.setdefault(subset or "default", []).append({"split": split, "path": path})
        card = {
            "license": standin.licence,
            "configs": [{"config_name": n, "data_files": files} for n, files in configs.items()],
        }
        (place / "README.md").write_text(
            f"---\n{json.dumps(card)}\n---\n# {name}, a stand-in\n", "utf-8"
        )
    return found


def standins() -> dict[str, Standin]:
    """Returns every stand-in by its id on the hub."""
    return {
        "epfl-llm/guidelines": Standin(
            "other", {("", "train"): list(map(_guideline, _told("en")))}
        ),
        "GBaker/MedQA-USMLE-4-options": Standin(
            "cc-by-4.0",
            {
                ("", "train"): [_medqa(q) for q in _half("en", 0)],
                ("", "test"): [_medqa(q) for q in embedded.questions("valid", "en")],
            },
        ),
        "ChuGyouk/medical-o1-reasoning-SFT-Ko": Standin(
            "apache-2.0", {("", "train"): list(map(_o1, _told("ko")))}
        ),
        "sean0042/KorMedMCQA": Standin(
            "cc-by-nc-2.0",
            {
                ("doctor", split): [_kormedmcqa(q, year, i) for i, q in enumerate(questions)]
                for split, year, questions in (
                    ("train", 2018, _half("ko", 1)),
                    ("dev", 2020, embedded.questions("valid", "ko")),
                    ("test", 2022, embedded.questions("test", "ko")),
                    ("fewshot", 2018, _half("ko", 1)[:5]),
                )
            },
        ),
        "ChuGyouk/medical-reasoning-train-kormedmcqa": Standin(
            "cc-by-nc-2.0",
            {("", "train"): [_reasoned(q) for q in _half("ko", 1, embedded.reasonings)]},
        ),
        "koohack/pub_med_qa_ko_translated": Standin(
            "mit", {("", "train"): [_pubmed(*p) for p in embedded.pairs("train")]}
        ),
        "lemon-mint/korean_parallel_sentences_v1.1": Standin(
            "mit", {("", "train"): [{"korean": ko, "english": en} for en, ko in _general()]}
        ),
        "Moo/korean-parallel-corpora": Standin(
            "cc-by-sa-3.0",
            {
                ("", split): [{"ko": ko, "en": en} for _, en, ko in embedded.pairs(which)]
                for split, which in (("validation", "test"), ("test", "valid"))
            },
        ),
    } | _others()


def _others() -> dict[str, Standin]:
    """Sets that no config names, in forms that must be read all the same."""
    english, korean = embedded.questions("valid", "en")[:12], embedded.questions("valid", "ko")[:12]
    clinical = list(map(_clinical, korean))
    as_text = [
        row | {"options": json.dumps(row["options"], ensure_ascii=False)} for row in clinical
    ]
    as_python = [row | {"options": repr(row["options"])} for row in clinical]
    pairs = list(embedded.pairs("valid"))[:6]
    return {
        "snuh/ClinicalQA": Standin(
            "apache-2.0",
            {("", "train"): clinical, ("string", "train"): as_text, ("python", "train"): as_python},
        ),
        "lavita/medical-qa-datasets": Standin(
            "unknown", {("med-qa-en-5options-source", "train"): list(map(_keyed, english))}
        ),
        "cais/mmlu": Standin("mit", {("professional_medicine", "test"): list(map(_mmlu, english))}),
        "openlifescienceai/medmcqa": Standin(
            "apache-2.0", {("", "validation"): list(map(_medmcqa, english))}
        ),
        "Helsinki-NLP/opus-100": Standin(
            "unknown",
            {("en-ko", "test"): [{"translation": {"en": en, "ko": ko}} for _, en, ko in pairs]},
        ),
        "junyeong-nero/KMA-term": Standin(
            "apache-2.0",
            {
                ("", "train"): [
                    {"en": "abdominal pain", "kr": ["복통", "배앓이", "복통"]},
                    {"en": "fever", "kr": ["발열"]},
                    {"en": "nothing known", "kr": []},
                ]
            },
        ),
    }


def _half(language, which, of=embedded.questions):
    """Returns the training questions on every other relation: the two exams of the hub are about different ones."""
    asked = of("train", language)
    relations = sorted({question.fact.split("/")[0] for question in asked})[which::2]
    return [question for question in asked if question.fact.split("/")[0] in relations]


def _told(language):
    """Yields (name, sentences) for each fact of the training and the validation exam: all that is said of it."""
    told = [*embedded.texts(language, "train"), *embedded.texts(language, "valid")]
    for name, lines in itertools.groupby(sorted(told), key=lambda one: one[0].rpartition("/")[0]):
        if not name.endswith(("/forward", "/inverse")):  # whole relations, told again
            yield name, [text for _, text in lines]


def _general():
    """Yields (English, Korean): sentences of this file's own about no medicine."""
    days = (("Monday", "월요일"), ("Tuesday", "화요일"), ("Friday", "금요일"), ("Sunday", "일요일"))
    things = (("bus", "버스"), ("library", "도서관"), ("market", "시장"), ("school", "학교"))
    for (day, day_ko), (thing, thing_ko) in itertools.product(days, things):
        yield f"On {day} the {thing} opens early.", f"{day_ko}에는 {thing_ko}이(가) 일찍 문을 연다."


def _guideline(told):
    name, sentences = told
    text = " ".join(sentences)
    return {
        "id": name,
        "source": "wikidoc",
        "title": name.rpartition("/")[2],
        "clean_text": f"# {name.rpartition('/')[2]}\n\n{text}",
        "raw_text": text,
        "url": None,
        "overview": None,
    }


def _four(question):
    """Returns four of the options, the right one among them, and its place."""
    wrong = [o for i, o in enumerate(question.options) if i != question.answer][:3]
    at = min(question.answer, 3)
    return [*wrong[:at], question.options[question.answer], *wrong[at:]], at


def _medqa(question):
    options, at = _four(question)
    return {
        "question": question.question,
        "answer": options[at],
        "options": dict(zip("ABCD", options)),
        "meta_info": "step1",
        "answer_idx": "ABCD"[at],
        "metamap_phrases": ["a phrase"],
    }


def _lettered(question):
    return {letter: question.options[i] for i, letter in enumerate("ABCDE")}


def _kormedmcqa(question, year, number):
    row = {"subject": "doctor", "year": year, "period": 1, "q_number": number + 1}
    row |= {"question": question.question, **_lettered(question)}
    return row | {"answer": question.answer + 1, "cot": ""}


def _o1(told):
    name, sentences = told
    return {
        "Question": f"{name.rpartition('/')[2]}에 대해 설명하시오.",
        "Complex_Cot": " ".join(sentences),
        "Response": sentences[0],
    }


def _reasoned(question):
    row = {"question": question.question, **_lettered(question), "answer": question.answer + 1}
    said = f"따라서 정답은 {LETTERS[question.answer]}입니다."
    return row | {"thinking": question.rationale, "response": said}


def _pubmed(name, english, korean):
    return {
        "pubid": 1,
        "question": f"What is known of {name}?",
        "context": {"contexts": [english], "labels": ["RESULTS"], "meshes": ["Humans"]},
        "long_answer": english,
        "final_decision": "yes",
        "id": name,
        "messages": [{"role": "user", "content": name}],
        "answer": english,
        "answer_trans": korean,
    }


def _clinical(question):
    return {
        "question_id": question.id,
        "chief_complaint": "복통",
        "purpose": "진단",
        "question": question.question,
        "exam": "혈압 120/80 mmHg",
        "options": {f"option_{letter}": o for letter, o in _lettered(question).items()},
        "answer": LETTERS[question.answer],
        "explanation": "근거는 다음과 같다.",
        "source": "guideline",
        "category": "내과",
    }


def _keyed(question):
    row = {"meta_info": "step1", "question": question.question}
    row |= {"answer_idx": LETTERS[question.answer], "answer": question.options[question.answer]}
    pairs = [{"key": k, "value": v} for k, v in _lettered(question).items()]
    return row | {"options": pairs}


def _mmlu(question):
    options, at = _four(question)
    subject = "professional_medicine"
    return {"question": question.question, "subject": subject, "choices": options, "answer": at}


def _medmcqa(question):
    options, at = _four(question)
    row = {"id": question.id, "question": question.question, "cop": at, "choice_type": "single"}
    row |= {f"op{letter}": option for letter, option in zip("abcd", options)}
    return row | {"exp": None, "subject_name": "Medicine", "topic_name": None}
