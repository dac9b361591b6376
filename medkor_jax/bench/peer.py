"""Their side: transformers with PEFT on torch, as its users run it. Imports torch; nothing else of ours does but io.reference.

    peer = Peer(model="cache/bench/0a1b", dtype="float32")         # or "random:gemma3-4b", device="cuda"
    peer.prepare_training(documents, batch_size=4, seq_len=512, rank=16, bos_id=2, rows_at_once=1)

Its natural best on a CPU: sdpa attention, as many threads as there are CPUs, no gradient checkpointing, the
library's own loss (`labels=`), documents sorted by length and right-padded to the longest of their part, gradients
accumulated over the parts. Small parts are its best, since it builds the logits of every position: all at once took
longer and several times the memory. The optimizer is AdamW with our settings over the adapters alone.

On a GPU: as many documents at once as fit, and gradient checkpointing only where even one does not (the caller tries); bfloat16
weights under autocast, as `Trainer(bf16=True)` runs them, with adapters in float32, which is PEFT's default.
"""

from __future__ import annotations

import importlib.util
import json
import pathlib
import types
from typing import Any

from medkor_jax.bench.documents import Document, pad
from medkor_jax.bench.stopwatch import Stopwatch, n_cpus, peak_memory_bytes

TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
SETTINGS = "attn sdpa, labels= loss, no gradient checkpointing, gradients accumulated over parts sorted by length, AdamW over adapters, gradient norm clipped at 1"


def missing_packages() -> list[str]:
    """Returns which of the peer's packages are not installed."""
    return [name for name in ("torch", "transformers", "peft") if importlib.util.find_spec(name) is None]


class Peer:
    def __init__(self, model: str, dtype: str = "float32", learning_rate: float = 1e-4, device: str = "cpu") -> None:
        """Raises: RuntimeError if torch has no such device."""
        import torch

        torch.set_num_threads(n_cpus())
        if device == "cuda" and not torch.cuda.is_available():
            raise RuntimeError(f"torch {torch.__version__} finds no GPU; install one built for CUDA (pip install torch), or give --against none")
        self._device = device
        self._model_path, self._learning_rate = model, learning_rate
        self._dtype = getattr(torch, dtype)

    def prepare_training(
        self, documents: list[Document], batch_size: int, seq_len: int, rank: int, bos_id: int, rows_at_once: int,
        checkpointing: bool = False,
    ) -> dict[str, Any]:  # fmt: skip
        """Loads and pads. rows_at_once: documents in one pass; all of them make one optimizer step."""
        import peft
        import torch

        torch.manual_seed(0)
        settings = peft.LoraConfig(
            r=rank, lora_alpha=rank, lora_dropout=0.0, target_modules=list(TARGETS), task_type="CAUSAL_LM"
        )
        self._model = peft.get_peft_model(self._load(), settings).train()
        if checkpointing:
            self._model.enable_input_require_grads()  # the embedding is frozen: else nothing would reach the checkpointed blocks
            self._model.gradient_checkpointing_enable({"use_reentrant": False})
        self._trainable = [p for p in self._model.parameters() if p.requires_grad]
        self._optimizer = torch.optim.AdamW(self._trainable, lr=self._learning_rate, betas=(0.9, 0.98), weight_decay=0.0)
        ordered = sorted(documents, key=lambda document: len(document["tokens"]))
        parts = [ordered[i : i + rows_at_once] for i in range(0, len(ordered), rows_at_once)]
        padded = [pad(part, bos_id=bos_id, pad_id=0) for part in parts]
        self._parts = [{name: torch.from_numpy(x).to(self._device) for name, x in part.items()} for part in padded]
        self._n_losses = sum(sum(document["loss"]) for document in documents)
        slots = sum(part["input_ids"].size for part in padded)
        tokens = sum(int(part["attention_mask"].sum()) for part in padded)
        return {"slots": slots, "parameters": sum(p.numel() for p in self._trainable), "tokens": tokens}

    def step(self) -> dict[str, float]:
        """Returns seconds and the loss before the update."""
        import torch

        with Stopwatch() as watch:
            total = 0.0
            for part in self._parts:
                with torch.autocast(self._device, self._dtype, enabled=self._dtype == torch.bfloat16):
                    loss = self._model(**part, use_cache=False, num_items_in_batch=self._n_losses).loss
                loss.backward()
                total += float(loss.detach())
            torch.nn.utils.clip_grad_norm_(self._trainable, 1.0)
            self._optimizer.step()
            self._optimizer.zero_grad(set_to_none=True)
            self._finish()
        return watch.to_json() | {"loss": total}

    def prepare_decoding(self, prompts: list[list[int]], max_new_tokens: int, pad_id: int) -> None:
        import torch

        self._model = self._load().eval()
        width = max(map(len, prompts))
        ids = torch.tensor([[pad_id] * (width - len(p)) + p for p in prompts], device=self._device)
        mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=self._device)
        self._model.generation_config.eos_token_id = None  # both sides make exactly max_new_tokens

        def generate() -> Any:
            with torch.inference_mode():
                out = self._model.generate(
                    input_ids=ids, attention_mask=mask, do_sample=False, max_new_tokens=max_new_tokens, pad_token_id=pad_id
                )
            return out[:, width:]

        self._generate = generate

    def generate(self) -> dict[str, Any]:
        with Stopwatch() as watch:
            tokens = self._generate()
            self._finish()
        return watch.to_json() | {"tokens": tokens.tolist()}

    def peak_memory_bytes(self) -> int:
        """Returns the most that torch had allocated on a GPU, on a CPU the most this process had."""
        import torch

        return torch.cuda.max_memory_allocated() if self._device == "cuda" else peak_memory_bytes()

    def _finish(self) -> None:
        """Waits until a GPU has done what it was given."""
        import torch

        if self._device == "cuda":
            torch.cuda.synchronize()

    def describe(self) -> dict[str, str]:
        import peft
        import torch
        import transformers

        versions = {module.__name__: module.__version__ for module in (torch, transformers, peft)}
        return versions | {"threads": str(torch.get_num_threads()), "settings": SETTINGS}

    def convert(self, weights: str, directory: str) -> None:
        """Writes `weights` as safetensors, once: transformers takes long to read a GGUF file each time."""
        import os

        import safetensors.torch

        from medkor_jax.io.reference import load_reference

        target = pathlib.Path(directory)
        partial = target.with_name(f"{target.name}.{os.getpid()}.part")
        partial.mkdir()
        model = load_reference(weights).to(self._dtype)
        # save_pretrained refuses a model that came from GGUF, although it is dequantised
        safetensors.torch.save_model(model, str(partial / "model.safetensors"), metadata={"format": "pt"})
        config = {k: v for k, v in model.config.to_dict().items() if k != "quantization_config"}
        (partial / "config.json").write_text(json.dumps(config, default=str))
        os.replace(partial, target)

    def _load(self) -> Any:
        import torch
        import transformers

        if self._model_path.startswith("random:"):
            from medkor_jax.io.export_form import hf_config
            from medkor_jax.model.config import preset

            ids = types.SimpleNamespace(bos_id=2, stop_ids=(1,), pad_id=0)
            sizes = hf_config(preset(self._model_path.removeprefix("random:")), str(self._dtype).removeprefix("torch."), ids)
            config = transformers.Gemma3TextConfig(**sizes)
            torch.manual_seed(0)
            with torch.device(self._device):
                return transformers.AutoModelForCausalLM.from_config(config, dtype=self._dtype, attn_implementation="sdpa")
        return transformers.AutoModelForCausalLM.from_pretrained(
            self._model_path, dtype=self._dtype, attn_implementation="sdpa", use_safetensors=True
        )
