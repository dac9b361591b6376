"""What rounding took of what a part of the model does: of an adapter that is merged, of everything that is exported.

    kept = compare(effect=adapted - base, rounded=merged - base, scale=rms(base))
    kept.lost, kept.noise, kept.words

A part's effect e is what it changes in the logits, in float32; r is what it still changes once weights are rounded.
The share of e that is not in r any more (1 - <r, e> / <e, e>) is lost; what r says beside that (|r - its share of e| /
|e|) is noise, which rounding the base alone makes too. A short LoRA has little effect, and noise beside it looks loud;
what is lost is what refuses: rounding cannot be allowed to silence what was trained.

An export in bfloat16 carries its residual stream larger where layers were added, see `choose_stream_scale`.

Logits are compared at a few positions of fixed English and Korean sentences, each less its mean over the vocabulary.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from medkor_jax.data.tokenizer import Tokenizer
from medkor_jax.model.config import ModelConfig
from medkor_jax.model.forward import Inputs, forward, project_logits
from medkor_jax.model.params import Params, new_head_rows
from medkor_jax.model.prompts import Routing
from medkor_jax.parallel.mesh import batch_ways, replicate

MOST_LOST = 0.1
"""Largest share of a part's effect that rounding may take."""

EVERYTHING = "everything"  # in a record of what was kept of each part: all of them together
MOST_NOISE = {"float32": 2e-3, "bfloat16": 0.25}
"""Largest difference that may stand beside the effect, as a share of the logits themselves (root mean squares)."""

_TEXTS = (
    "A 58-year-old man has had crushing chest pain for two hours. His electrocardiogram shows ST elevation in leads II, III and aVF. "
    "The most likely diagnosis is an inferior myocardial infarction, and he is given aspirin and heparin.",
    "58세 남자가 2시간 전부터 쥐어짜는 듯한 가슴통증으로 병원에 왔다. 심전도에서 II, III, aVF 유도의 ST 분절 상승이 보인다. 가장 가능성이 높은 진단은 "
    "하벽 심근경색이며 아스피린과 헤파린을 투여한다.",
    "Vitamin C deficiency causes scurvy. Which of the following vitamins is fat-soluble?\nA. Thiamine\nB. Folate\nC. Retinol\nAnswer: C",
    "비타민 C 결핍으로 괴혈병이 생긴다. 다음 중 지용성 비타민은?\nA. 티아민\nB. 엽산\nC. 레티놀\n정답：C",
)
_LENGTH, _EVERY = 48, 6  # tokens of each row; every so many the logits are looked at


@dataclasses.dataclass(frozen=True)
class Kept:
    """What is left of a part's effect.

    lost, noise: shares of the effect; effect, error: the effect and what rounding changed in all, as shares of the logits.
    """

    lost: float
    noise: float
    effect: float
    error: float

    @property
    def words(self) -> str:
        if not self.effect:
            return f"it changes no logit by itself; rounding changes them by {self.error:.1e} of their size"
        took = (
            f"takes {self.lost:.1%} of its effect"
            if self.lost >= 0
            else f"makes its effect {-self.lost:.1%} larger"
        )
        return (
            f"rounding {took} and adds noise of {self.noise:.1%} of it (the effect is "
            f"{self.effect:.1e} of the logits)"
        )

    def is_too_much(self, dtype: str) -> bool:
        return not (abs(self.lost) <= MOST_LOST and self.error <= MOST_NOISE[dtype])

    def to_json(self) -> dict[str, float]:
        return {name: round(value, 6) for name, value in dataclasses.asdict(self).items()}


def compare(effect: np.ndarray, rounded: np.ndarray, scale: float) -> Kept:
    """Returns what of `effect` is left in `rounded`; scale: root mean square of the logits. A part without effect loses none."""
    effect, rounded = effect.astype(np.float64).ravel(), rounded.astype(np.float64).ravel()
    power, error = float(effect @ effect), float(np.sqrt(np.mean((rounded - effect) ** 2)))
    if power == 0.0:
        return Kept(0.0, 0.0, 0.0, error / scale)
    share = float(rounded @ effect) / power
    noise = float(np.linalg.norm(rounded - share * effect)) / power**0.5
    return Kept(1 - share, noise, float(np.sqrt(power / effect.size)) / scale, error / scale)


class Probe:
    """The fixed sentences, and what a model says of them. Call under the mesh that the parameters lie on."""

    def __init__(self, config: ModelConfig, tokenizer: Tokenizer) -> None:
        encoded = [[tokenizer.bos_id, *tokenizer.encode(text)] for text in _TEXTS]
        rows = [((ids * (_LENGTH // len(ids) + 1))[:_LENGTH]) for ids in encoded] * batch_ways()
        routing = Routing.by_token(tokenizer.languages, config.vocab_size)
        tokens = np.array(rows, np.int32)
        langs = np.array([routing.walk(row, 0)[0] for row in rows])
        at = np.broadcast_to(np.arange(_LENGTH, dtype=np.int32), tokens.shape)
        # NumPy, the same on every process
        self._inputs = Inputs(tokens, at, np.ones_like(tokens), langs)  # type: ignore[arg-type]
        self._config = config

    def logits(self, params: Params) -> np.ndarray:
        """Returns float32 [rows, positions, V], computed in float32 whatever the weights are in."""
        with jax.default_matmul_precision("highest"):
            logits = np.asarray(_logits(params, self._inputs, self._config))[: len(_TEXTS)]
        return logits - logits.mean(axis=-1, keepdims=True)


SILENCED = ("post_attn_norm", "post_ffw_norm")
"""The norms that an added layer speaks through: it is silent where they are -1."""

MOST_SCALE = 4096
_FINE_ENOUGH = (
    0.01  # largest rounding error of an added layer's post-norm scales, as a share of them
)


def scaled_norm(w: Any, scale: float) -> np.ndarray:
    """Returns the weight that multiplies by `scale` what a Gemma norm of weight `w` gives: scale * (1 + w) - 1, float32."""
    return np.float32(scale) * (1 + np.asarray(w, np.float32)) - 1


def choose_stream_scale(expand: dict[str, Any], dtype: str) -> int:
    """Returns the smallest power of two at which the added layers' post-norm scales survive `dtype`; 1 if nothing is added.

    A Gemma block adds (1 + w) * RMS(y), and a young added layer has w near -1, where bfloat16 steps by 0.004: its scales
    would become 0 or 0.004. If the whole residual stream is carried K times as large (the input table and every
    post-norm scale times K; all else reads the stream through a norm, which takes K out again), they are stored as
    K * (1 + w) - 1, further from -1, where the steps are a small share of them. In exact arithmetic nothing changes.
    """
    kind, scale = jnp.dtype(dtype), 1
    scales = [
        1 + np.asarray(block[name], np.float32) for block in expand.values() for name in SILENCED
    ]
    while scale < MOST_SCALE:
        stored = [
            np.asarray((np.float32(scale) * one - 1).astype(kind), np.float32) + 1 for one in scales
        ]
        errors = [
            np.linalg.norm(kept / scale - one) / (np.linalg.norm(one) or 1)
            for kept, one in zip(stored, scales)
        ]
        if max(errors, default=0.0) <= _FINE_ENOUGH:
            break
        scale *= 2
    return scale


def rms(logits: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(logits, dtype=np.float64)))) or 1.0


@functools.partial(jax.jit, static_argnames="config")
def _logits(params: Params, inputs: Inputs, config: ModelConfig) -> jax.Array:
    hidden = forward(params, config, inputs, dtype=jnp.float32)[:, _EVERY - 1 :: _EVERY]
    return replicate(project_logits(params.base, hidden, new_head_rows(params)))
