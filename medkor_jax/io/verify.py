"""Do these weights give the logits that `transformers` gives?

    result = verify("embedded")          # needs torch and transformers
    print(result.table())

Fixed Korean and English prompts, one of them longer than the sliding window, float32 on the CPU. It
compares what was loaded from a checkpoint; a run's adapters have no counterpart there until exported.
"""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from medkor_jax.io.embedded_model import embedded_gguf
from medkor_jax.io.hf import download
from medkor_jax.io.weights import Weights, open_weights
from medkor_jax.model.forward import Inputs, forward, project_logits
from medkor_jax.model.params import Params

BOUND = 1e-3
"""Largest logit difference allowed, where logits are about 40 in size."""

PROMPTS = {
    "english": "A 58-year-old man has crushing chest pain. The most likely diagnosis is",
    "korean": "58세 남자가 쥐어짜는 듯한 가슴통증으로 병원에 왔다. 가장 가능성이 높은 진단은",
    "mixed": "항문열창(anal fissure)의 치료로 옳은 것은?\nA. 수술\nB. 좌욕\n정답：",
}
LONG = "The patient was given aspirin. 환자는 아스피린을 복용하였다. "
COMPARED_POSITIONS = 64  # at the end of each prompt: logits of every position of a long prompt would not fit


@dataclasses.dataclass(frozen=True)
class Comparison:
    prompt: str
    n_tokens: int
    largest_difference: float
    logit_scale: float  # largest absolute logit of the reference
    same_top_share: float


@dataclasses.dataclass(frozen=True)
class Verification:
    weights: str
    comparisons: tuple[Comparison, ...]
    bound: float
    reference: str

    @property
    def passed(self) -> bool:
        return all(c.largest_difference <= self.bound for c in self.comparisons)

    def to_json(self) -> dict[str, Any]:
        return {**dataclasses.asdict(self), "passed": self.passed}

    def table(self) -> str:
        lines = [f"{self.weights} against {self.reference}, float32, last {COMPARED_POSITIONS} positions of each prompt:"]
        lines += [
            f"  {c.prompt:<10} {c.n_tokens:>5} tokens   largest difference {c.largest_difference:.2e}"
            f"   (logits up to {c.logit_scale:.1f})   same best token {c.same_top_share:.1%}"
            for c in self.comparisons
        ]
        return "\n".join([*lines, f"{'PASSED' if self.passed else 'FAILED'}: the bound is {self.bound:g}"])


def verify(name: str, bound: float = BOUND) -> Verification:
    """Returns the comparison of `name` loaded here and in transformers.

    Raises: ModuleNotFoundError, with what to install, without torch; WeightsError if `name` cannot be opened;
    ValueError for random weights, which no reference has.
    """
    try:
        import torch
        import transformers
    except ImportError as error:
        raise ModuleNotFoundError("verify compares with transformers and needs torch: pip install 'medkor-jax[test]'") from error
    if name.startswith("random:"):
        raise ValueError(f"{name} exists only here; verify needs a checkpoint that transformers can load too")
    weights = open_weights(name)
    prompts = tokenize_prompts(weights)
    ours = our_logits(weights, prompts)
    model = load_reference(weights, name)
    comparisons = []
    for prompt, ids in prompts.items():
        with torch.no_grad():
            theirs = model(input_ids=torch.tensor([ids]), logits_to_keep=COMPARED_POSITIONS).logits[0].float().numpy()
        theirs = theirs[:, : ours[prompt].shape[1]]
        difference = np.abs(ours[prompt] - theirs)
        same = np.argmax(ours[prompt], -1) == np.argmax(theirs, -1)
        comparisons.append(
            Comparison(prompt, len(ids), float(difference.max()), float(np.abs(theirs).max()), float(same.mean()))
        )
    return Verification(name, tuple(comparisons), bound, f"transformers {transformers.__version__}")


def tokenize_prompts(weights: Weights) -> dict[str, list[int]]:
    """Returns the prompts' ids, bos first, with one prompt longer than the window by half a window."""
    tokenizer = weights.tokenizer
    if tokenizer is None:
        raise ValueError(f"{weights.name} has no tokenizer; verify reads text")
    prompts = {name: [tokenizer.bos_id, *tokenizer.encode(text)] for name, text in PROMPTS.items()}
    piece = tokenizer.encode(LONG)
    wanted = min(weights.config.sliding_window * 3 // 2, weights.config.max_positions)
    prompts["long"] = [tokenizer.bos_id, *(piece * (wanted // len(piece) + 1))][:wanted]
    return prompts


def our_logits(weights: Weights, prompts: dict[str, list[int]]) -> dict[str, np.ndarray]:
    """Returns {prompt: float32 [positions, V]} of the last positions."""
    params = Params(weights.load(jnp.float32, None))

    @jax.jit
    def logits(params: Params, tokens: jax.Array) -> jax.Array:
        positions = jnp.arange(tokens.shape[1])[None]
        inputs = Inputs(tokens, positions, jnp.ones_like(tokens), jnp.zeros_like(tokens))
        hidden = forward(params, weights.config, inputs, dtype=jnp.float32)
        return project_logits(params.base, hidden[0, -COMPARED_POSITIONS:])

    with jax.default_matmul_precision("highest"):
        return {name: np.asarray(logits(params, jnp.array([ids], jnp.int32))) for name, ids in prompts.items()}


def load_reference(weights: Weights, name: str) -> Any:
    """Returns the same checkpoint as a transformers model, float32."""
    import torch
    import transformers

    path = pathlib.Path(name).expanduser()
    if name == "embedded":
        path = embedded_gguf()[0]
    elif not path.exists():
        path = download(name)
    if path.is_dir() and (found := sorted(path.glob("*.gguf"))) and not any(path.glob("*.safetensors")):
        path = found[0]
    common = {"dtype": torch.float32}
    if path.is_file():
        return transformers.AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, **common)
    architectures = transformers.AutoConfig.from_pretrained(path).architectures or [""]
    is_multimodal = architectures[0].endswith("ForConditionalGeneration")
    kind = transformers.AutoModelForImageTextToText if is_multimodal else transformers.AutoModelForCausalLM
    return kind.from_pretrained(path, use_safetensors=True, **common)
