"""What `medkor verify` found, when it counts as passed, and how it is told.

result = verify("embedded")
print(result.table()); result.passed
"""

from __future__ import annotations

import dataclasses
from typing import Any

from medkor_jax.commands.text_parity import TextParity

ROUNDING_VARIES = 3.0
"""A prompt may be off by so many times what rounding did to an export's own texts; a lost part is
off by far more."""

COMPARED_POSITIONS = (
    64  # at the end of each prompt: logits of every position of a long prompt would not fit
)
NEW_TOKENS = 16  # of each greedy continuation


@dataclasses.dataclass(frozen=True)
class Comparison:
    prompt: str
    n_tokens: int
    largest_difference: float
    logit_scale: float  # largest absolute logit of the reference
    same_top_share: float


@dataclasses.dataclass(frozen=True)
class Greedy:
    """n_same: prompts whose whole continuation is that of our cache; regret: the largest where they
    part, in logits."""

    against: str
    n_prompts: int
    n_same: int
    regret: float


@dataclasses.dataclass(frozen=True)
class Rounded:
    """What an export in a narrower dtype keeps of the run. error: root mean square of the
    difference of their logits, as a share of the run's; expected: what the export measured of
    rounding alone when it was written, on other texts; parts: the share of each part's effect that
    it lost there."""

    dtype: str
    error: float
    expected: float
    parts: dict[str, float]

    @property
    def passed(self) -> bool:
        return self.error <= ROUNDING_VARIES * self.expected

    def lines(self) -> list[str]:
        parts = "; ".join(f"{part} {lost:.1%}" for part, lost in self.parts.items())
        return [
            f"  the run against its {self.dtype} export: the logits differ by {self.error:.2%} of "
            f"their size (at most {ROUNDING_VARIES * self.expected:.2%}: {ROUNDING_VARIES:g} times "
            "what the export measured of rounding); lost of the effect, as "
            f"measured by the export: {parts or 'nothing to lose'}"
        ]


@dataclasses.dataclass(frozen=True)
class Verification:
    weights: str
    texts: TextParity
    comparisons: tuple[Comparison, ...]
    greedy: tuple[Greedy, ...]
    bound: float
    reference: str
    reference_dtype: str = ""
    rounded: Rounded | None = None
    is_another: bool = False

    @property
    def passed(self) -> bool:
        is_kept = not self.is_another and (self.rounded is None or self.rounded.passed)
        return (
            self.texts.passed
            and is_kept
            and all(c.largest_difference <= self.bound for c in self.comparisons)
            and all(g.regret <= 2 * self.bound for g in self.greedy)
        )

    def to_json(self) -> dict[str, Any]:
        return {**dataclasses.asdict(self), "passed": self.passed}

    def table(self) -> str:
        lines = [f"{self.weights} against {self.reference}:", *self.texts.lines()]
        if self.is_another:
            lines.append("  the export says that it was made from another model than this one")
        if not self.texts.passed:
            return "\n".join(
                [*lines, "FAILED: texts are read differently; logits were not compared"]
            )
        subject = "ours" if self.rounded is None else "the export, loaded here"
        lines.append(
            f"  {subject} in float32, theirs in {self.reference_dtype}, "
            f"last {COMPARED_POSITIONS} positions of each prompt:"
        )
        lines += [
            f"  {c.prompt:<10} {c.n_tokens:>5} tokens"
            f"   largest difference {c.largest_difference:.2e}"
            f"   (logits up to {c.logit_scale:.1f})   same best token {c.same_top_share:.1%}"
            for c in self.comparisons
        ]
        lines += [
            f"  greedy, cache against {g.against}: "
            f"{g.n_same} of {g.n_prompts} continuations of {NEW_TOKENS} tokens are the same"
            + (
                ""
                if g.n_same == g.n_prompts
                else f"; where they part, the two logits are {g.regret:.1e} apart"
            )
            for g in self.greedy
        ]
        lines += [] if self.rounded is None else self.rounded.lines()
        return "\n".join(
            [*lines, f"{'PASSED' if self.passed else 'FAILED'}: the bound is {self.bound:g}"]
        )
