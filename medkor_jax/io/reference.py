"""The reference: a checkpoint as `transformers` reads it, its logits and its greedy text. Imports torch.

    tokenizer = load_reference_tokenizer("google/medgemma-4b-it")
    logits, texts, dtype = reference_answers("embedded", {"english": [2, 17, 5]}, [], n_logits=64, max_new_tokens=16)

Nothing that trains or is trained calls it: it is what is compared with (`medkor verify`, `medkor bench`).
"""

from __future__ import annotations

import json
import os
import pathlib
from typing import Any

import numpy as np

from medkor_jax.io.download import download
from medkor_jax.io.embedded_model import EMBEDDED_MODEL, embedded_gguf


def load_reference_tokenizer(name: str) -> Any:
    """Returns what transformers makes of a checkpoint's tokenizer files; a PEFT adapter has its base's."""
    import transformers

    path = _place(name)
    if path.is_file():
        return transformers.AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    if (path / "adapter_config.json").is_file():
        return load_reference_tokenizer(_base_of_adapter(path))
    return transformers.AutoTokenizer.from_pretrained(path)


def _base_of_adapter(path: pathlib.Path) -> str:
    return json.loads((path / "adapter_config.json").read_text(encoding="utf-8"))[
        "base_model_name_or_path"
    ]


def load_reference(name: str) -> Any:
    """Returns a checkpoint, or an exported PEFT adapter on its base, as a transformers model in float32."""
    import torch
    import transformers

    path = _place(name)
    common = {"dtype": torch.float32}
    if path.is_file():
        return transformers.AutoModelForCausalLM.from_pretrained(
            path.parent, gguf_file=path.name, **common
        )
    if (path / "adapter_config.json").is_file():
        import peft

        return peft.PeftModel.from_pretrained(load_reference(_base_of_adapter(path)), str(path))
    architectures = transformers.AutoConfig.from_pretrained(path).architectures or [""]
    is_multimodal = architectures[0].endswith("ForConditionalGeneration")
    kind = (
        transformers.AutoModelForImageTextToText
        if is_multimodal
        else transformers.AutoModelForCausalLM
    )
    return kind.from_pretrained(path, use_safetensors=True, **common)


def reference_answers(
    name: str,
    prompts: dict[str, list[int]],
    batches: list[list[list[int]]],
    *,
    n_logits: int,
    max_new_tokens: int,
) -> tuple[dict[str, np.ndarray], list, str]:
    """Returns the reference's logits at the last `n_logits` positions of each prompt, float64 [n, V], its greedy tokens for each batch, and the dtype
    of the logits: float64 where a model of that width takes less than half of this machine's memory."""
    import torch

    model = load_reference(name).eval()
    n_bytes = 8 * sum(parameter.numel() for parameter in model.parameters())
    is_exact = n_bytes < os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2
    with torch.inference_mode():
        if is_exact:
            model.double()
        logits = {
            prompt: model(input_ids=torch.tensor([ids]), logits_to_keep=n_logits)
            .logits[0]
            .double()
            .numpy()
            for prompt, ids in prompts.items()
        }
        torch.nn.Module.float(
            model
        )  # as they were; transformers' own `float` refuses what was read from a GGUF file
        return (
            logits,
            [_greedy(model, batch, max_new_tokens) for batch in batches],
            "float64" if is_exact else "float32",
        )


def _greedy(reference: Any, batch: list[list[int]], max_new_tokens: int) -> list[list[int]]:
    import torch

    width = max(map(len, batch))
    padded = lambda fill, kept: torch.tensor(
        [[fill] * (width - len(row)) + kept(row) for row in batch]
    )
    reference.generation_config.eos_token_id = None  # it is cut where ours ends
    tokens = reference.generate(
        input_ids=padded(0, list),
        attention_mask=padded(0, lambda row: [1] * len(row)),
        do_sample=False,
        pad_token_id=0,
        max_new_tokens=max_new_tokens,
        top_k=None,
        top_p=None,
    )
    return tokens[:, width:].tolist()


def _place(name: str) -> pathlib.Path:
    """Returns the directory, or the GGUF file, that transformers is given."""
    path = pathlib.Path(name).expanduser()
    if name == EMBEDDED_MODEL:
        return embedded_gguf()[0]
    if not path.exists():
        path = download(name)
    if (
        path.is_dir()
        and (found := sorted(path.glob("*.gguf")))
        and not any(path.glob("*.safetensors"))
    ):
        return found[0]
    return path
