"""Our decoder against the reference implementation, on tiny random checkpoints written by it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medkor_jax.io.weights import open_weights
from medkor_jax.model.forward import Inputs, forward, project_logits
from medkor_jax.model.params import Params

torch = pytest.importorskip("torch", reason="the reference implementation needs torch")
transformers = pytest.importorskip("transformers")

SIZES = dict(vocab_size=199, hidden_size=32, intermediate_size=48, head_dim=16, max_position_embeddings=256,
             num_attention_heads=4, num_key_value_heads=2, query_pre_attn_scalar=16)  # fmt: skip
ROPE = {"sliding_attention": {"rope_type": "default", "rope_theta": 100.0}}
ODD_KINDS = [
    "full_attention",
    "sliding_attention",
    "sliding_attention",
    "full_attention",
    "sliding_attention",
]

CASES = {
    "published pattern, linear scaling on global layers": dict(
        num_hidden_layers=7, sliding_window=8,
        rope_parameters=ROPE | {"full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1000.0}},
    ),
    "one key head, odd list of layers, query scale of its own": dict(
        num_hidden_layers=5, sliding_window=5, num_key_value_heads=1, layer_types=ODD_KINDS, query_pre_attn_scalar=42,
        rms_norm_eps=1e-3,
    ),
    "a key head for each query head, heads wider than the model": dict(
        num_hidden_layers=4, sliding_window=3, num_key_value_heads=4, head_dim=24, sliding_window_pattern=2,
    ),
    "window longer than the sequence": dict(num_hidden_layers=2, sliding_window=64),
}  # fmt: skip


def _reference(case, directory):
    """Returns the reference's model, every parameter random, saved to `directory` as float32."""
    config = transformers.Gemma3TextConfig(**(SIZES | case), attn_implementation="eager")
    model = transformers.Gemma3ForCausalLM(config).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, p in model.named_parameters():
            std = 0.5 if "norm" in name else 1.5 if "embed" in name else p.shape[1] ** -0.5
            p.copy_(std * torch.randn(p.shape, generator=generator))
            if "post_" in name:  # so that layers weigh as much as the embedding
                p.add_(5.0)
    model.save_pretrained(directory)
    return model


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_logits_equal_the_reference(case, tmp_path):
    model = _reference(case, tmp_path)
    tokens = np.random.default_rng(0).integers(0, 199, (2, 40))
    with torch.no_grad():
        expected = model(torch.as_tensor(tokens)).logits.numpy()

    weights = open_weights(str(tmp_path))
    base = weights.load(jnp.float32, None)
    positions = np.tile(np.arange(40, dtype=np.int32), (2, 1))
    inputs = Inputs(
        tokens.astype(np.int32), positions, np.ones_like(positions), np.zeros_like(positions)
    )
    run = jax.jit(functools.partial(forward, config=weights.config, dtype=jnp.float32))
    logits = np.asarray(project_logits(base, run(Params(base), inputs=inputs)))

    scale = np.abs(expected).max()
    assert 20 < scale < 80
    assert np.abs(logits - expected).max() < 2e-4 * scale / 40  # measured: 4e-5
