"""The embedded exam: a bilingual table of medical facts, and the questions and texts made from it.

    questions("valid", "ko")[0].question   # "티아민 결핍으로 생기는 질환은?"
    texts("ko")[0]                         # ("embedded/ko/antidote/acetaminophen/0", "아세트아미노펜의 해독제는 ...")

The table (`facts.jsonl`) states each fact once, in English and Korean, with the split its questions belong
to; `relations.json` says how a fact is worded. Everything else is generated, the same on every machine, so
the English exam is the exact translation of the Korean one. Texts may state every fact: that is what is
taught. Questions about a fact of the validation or test exam are never in the training exam.

What it does not do: measure medical competence. It shows whether a pipeline teaches what it is given.
"""

from medkor_jax.data.embedded.exam import questions, reasonings
from medkor_jax.data.embedded.table import SPLITS, Fact, Relation, facts, relations
from medkor_jax.data.embedded.telling import pairs, texts
from medkor_jax.data.language import LANGUAGES

__all__ = [
    "LANGUAGES",
    "SPLITS",
    "Fact",
    "Relation",
    "facts",
    "pairs",
    "questions",
    "reasonings",
    "relations",
    "texts",
]
