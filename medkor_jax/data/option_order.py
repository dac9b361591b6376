"""Whether the options of a question may be put in another order, and another order for them.

    keeps_order(("aspirin", "heparin", "both A and B"))          # True: shuffled, "both A and B" would name others
    in_orders(question, 4)                                       # it, and in three other orders of its options

An option that speaks of others by letter, number or place ("all of the above", "위의 모두", "①과 ③") is right only
where they stand. What it does not do: rewrite such options, or look for numbers that refer to a list in the question
("ㄱ, ㄷ"), which moves with no option.
"""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Sequence

import numpy as np

from medkor_jax.data.contents import checksum
from medkor_jax.data.question import LETTERS, Question

_MARK = rf"(?:[(\[]?[{LETTERS}a-j][)\].]?|[(\[]?\d{{1,2}}[)\]]|[①-⑩])"
_BARE = rf"(?:[(\[]?[{LETTERS}][)\].]?|[①-⑩])"
_JOINED = r"\s*(?:,\s*and|,|/|&|\+|and|or|nor|와|과|및|또는|혹은|이나|나|하고)\s*"
_PATTERNS = (
    # all of the above, none of these, any of the options; either of the above
    r"\b(?:all|none|any|both|neither|either)\s+(?:of\s+)?(?:the\s+|these\s+|those\s+)?"
    r"(?:above|below|preceding|foregoing|following|previous|other (?:options|answers|choices)|options|answers|choices|statements"
    r"|listed|mentioned)\b",
    r"\b(?:all|none|any|both|neither|either|each|one|two|three|some|most)\s+of\s+(?:the|these|those)\s+"
    r"(?:above|below|preceding|foregoing|following|previous|others?|options|answers|choices|statements)\b",
    r"^\W*(?:all|none|both|neither|any|either)(?:\s+of)?\s+(?:these|those|them)\W*$",
    r"^\W*(?:all|both|neither|none(?=\s))(?:\s+(?:are|is)\s+\w+)?\W*$",
    r"\b(?:above|preceding)\s+(?:options?|answers?|choices?|statements?)\b|\b(?:options?|answers?|choices?)\s+(?:above|below)\b",
    # both A and B, neither A nor B, options A and C, A and B only, A, B and C are correct, (1) and (3); not "vitamins A and D"
    rf"\b(?:both|either|neither|only)\s+{_MARK}{_JOINED}{_MARK}(?![\w-])",
    rf"\b(?:options?|answers?|choices?|statements?)\s+(?:[(\[]?\d{{1,2}}|{_MARK})(?![\w-])",
    rf"^\W*{_MARK}(?:{_JOINED}{_MARK})+\W*(?:(?:are|is)\s+)?(?:both\s+|all\s+)?"
    r"(?:only|correct|true|right|wrong|false|incorrect)?\W*$",
    rf"^\W*(?:only\s+{_BARE}|{_BARE}\s+only)\W*$",
    # A to C, A through C, A-C, A~C 모두; all except C, all but (d); everything above, the first two options
    rf"^\W*(?:from\s+)?(?-i:{_BARE})\s*(?:to|through|[-–~∼])\s*(?-i:{_BARE})\s*(?:(?:are|is)\s+\w+|모두|전부|다)?\W*$",
    rf"\b(?:all|any|everything|none)\s+(?:except|but)\s+(?:for\s+)?{_MARK}(?![\w-])",
    r"\b(?:everything|nothing)\s+(?:above|below|listed)\b|\b(?:first|last)\s+(?:two|three|four)\s+(?:options|answers|choices)\b",
    rf"\b(?:same|opposite)\s+as\s+(?:option\s+)?{_MARK}(?![\w-])",
    # 위의 모두, 이상 모두, 보기 모두, 위 보기 중 없음, 모두 맞다, 정답 없음, 해당 사항 없음
    r"(?:^|\s)(?:위|위의|위에|이상|상기|앞의|아래|다음|보기)\s*(?:의|에서|에)?\s*(?:보기|항목|것|내용|사항|답|선택지)?\s*"
    r"(?:들)?\s*(?:은|는|이|가|중|중에|중에는|을|를)?(?:\s*(?:모두|전부|없)|\s+(?:둘\s*)?다(?!\w)|\s*어느\s*것도|아무것도)",
    r"^\W*(?:모두|전부|둘\s*다|셋\s*다|다)\s*(?:가|이)?\s*(?:맞|옳|정답|해당|그르|틀리|틀렸|아니|포함|답|가능)",
    r"^\W*(?:모두|전부|둘\s*다|셋\s*다|모두\s*다)\W*$|^\W*(?:정답|답|해당(?:\s*(?:사항|항목))?|해당(?:하는|되는)\s*것)\s*(?:이|은)?\s*없",
    r"^\W*모든\s*(?:보기|항목|선택지)",
    # A와 B, A와 C 모두, A, B가 맞다, ①과 ③, 1번과 2번, 보기 A; not "A형과 B형"
    rf"^\W*{_BARE}(?:{_JOINED}{_BARE})+\s*(?:가|이|은|는|를|을|만|번)?\s*(?:모두|둘\s*다|전부|다|만)?\s*"
    r"(?:(?:맞|옳|정답|해당|그르|틀리|틀렸|아니)\w*(?:\s*다)?)?\W*$",
    rf"^\W*(?:\d{{1,2}}|{_BARE})\s*번(?:{_JOINED}(?:\d{{1,2}}|{_BARE})\s*번)*\s*(?:이|은|을|만|모두|둘\s*다|다|\s)*(?:(?:맞|옳|정답|틀)\w*)?\W*$",
    rf"(?:보기|선택지)\s*{_MARK}",
)
_SPEAKS = re.compile("|".join(f"(?:{pattern})" for pattern in _PATTERNS), re.IGNORECASE)


# A letter, number or circled number that may stand for an option. "Vitamin C" is taken for one as well: then the order stays.
_NAMED = re.compile(rf"(?<![A-Za-z0-9])[{LETTERS}](?![A-Za-z0-9])|[①-⑩]|\d\s*번|\([1-9a-j]\)")


def keeps_order(options: Sequence[str]) -> bool:
    """Returns whether an option speaks of others by letter, number or place."""
    return any(_SPEAKS.search(option) for option in options)


def shuffle_options(question: Question, rng: np.random.Generator) -> Question:
    """Returns the question with its options in another order, and the key moved with them; as it is if they keep it."""
    if keeps_order(question.options):
        return question
    order = [int(i) for i in rng.permutation(len(question.options))]
    options = tuple(question.options[i] for i in order)
    return dataclasses.replace(question, options=options, answer=order.index(question.answer))


def in_orders(question: Question, n: int) -> list[Question]:
    """Returns the question, then n - 1 times with its options in orders of their own, drawn by its id; it alone if its options or
    its rationale speak of options by letter, number or place, and as many as there are where n is more."""
    found = {question.options: question}
    if keeps_order(question.options) or (n > 1 and _NAMED.search(question.rationale)):
        return [question]
    rng = np.random.default_rng(int(checksum(question.id)[:12], 16))
    for _ in itertools.repeat(None, 20 * (n - 1)):
        if len(found) == n:
            break
        other = shuffle_options(question, rng)
        name = f"{question.id}/order{len(found)}"
        found.setdefault(other.options, dataclasses.replace(other, id=name))
    return list(found.values())
