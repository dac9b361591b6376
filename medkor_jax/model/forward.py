"""tokens -> residual stream -> final hidden states: one plain function, scanned over stacked layers.

    hidden = forward(params, config, Inputs.of(batch), dtype=jnp.bfloat16)      # [B, T, D]
    logits = project_logits(params.base, hidden[:, -1])                         # only where needed

Logits are not part of `forward`: over 262k tokens they are the memory. The pieces (`embed`,
`make_view`, `run_block`) are public because retention scans two models through them at once and
decoding runs them with a cache.

Layers added at either end (`Params.expand`) are stacks of their own, scanned before and after: joining them to
the base's inside jit would copy the model.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from flax import struct
from jax.ad_checkpoint import checkpoint_name

from medkor_jax.model.attention import Seen, attend, visible
from medkor_jax.model.config import ModelConfig
from medkor_jax.model.kernel import attend_by_kind, choose
from medkor_jax.model.layers import Adapters, Attend, Block, Rope, make_rope, rms_norm
from medkor_jax.model.params import (
    ADAPTABLE,
    FRONT,
    LOCAL,
    SIDES,
    LayerPlan,
    Params,
    Tree,
    head_table,
    make_plan,
    n_edge_blocks,
)
from medkor_jax.model.remat import ATTENDED, policy
from medkor_jax.parallel.mesh import platform, spread

if TYPE_CHECKING:
    from jaxtyping import Float, Int


@struct.dataclass
class Inputs:
    """tokens, positions, segments, langs: [B, T] int32. Positions restart in each document; segment 0 is padding.

    branches: [B, T] int32 where a document has several continuations, each at the positions after branch 0,
    which all of them see; None: it has one.
    """

    tokens: jax.Array
    positions: jax.Array
    segments: jax.Array
    langs: jax.Array
    branches: jax.Array | None = None

    @classmethod
    def of(cls, batch: Mapping[str, jax.Array]) -> Inputs:
        return cls(batch["tokens"], batch["positions"], batch["segment_ids"], batch["langs"])

    @property
    def seen(self) -> Seen:
        return Seen(self.positions, self.segments, self.branches)


@struct.dataclass
class View:
    """What each kind of layer sees of a batch: rotary tables, who sees whom, and for "plain" that as [B, T, S] masks."""

    rope_local: Rope
    rope_global: Rope
    seen: Seen
    masks: tuple[jax.Array, jax.Array] | None
    window: int = struct.field(pytree_node=False)
    kernel: str = struct.field(pytree_node=False)

    def rope(self, is_local: jax.Array) -> Rope:
        return jax.tree.map(
            lambda a, b: jnp.where(is_local, a, b), self.rope_local, self.rope_global
        )

    def attend(self, q: jax.Array, k: jax.Array, v: jax.Array, is_local: jax.Array) -> jax.Array:
        if self.masks is None:
            return attend_by_kind(self.kernel, q, k, v, self.seen, is_local, self.window)
        return attend(q, k, v, jnp.where(is_local, *self.masks))


def make_view(config: ModelConfig, seen: Seen, attention: str = "auto") -> View:
    """attention: a name that `kernel.choose` knows."""
    t, has_branches = seen.positions.shape[1], seen.branches is not None
    kernel = choose(
        attention, t=t, head_dim=config.head_dim, platform=platform(), has_branches=has_branches
    )
    return View(
        rope_local=make_rope(seen.positions, config.head_dim, config.rope_base_local, 1.0),
        rope_global=make_rope(
            seen.positions, config.head_dim, config.rope_base_global, config.rope_scaling_global
        ),
        seen=seen,
        masks=(visible(seen, seen, config.sliding_window), visible(seen, seen, None))
        if kernel == "plain"
        else None,
        window=config.sliding_window,
        kernel=kernel,
    )


def embed(
    params: Params,
    config: ModelConfig,
    tokens: Int[jax.Array, "B T"],
    langs: Int[jax.Array, "B T"],
    dtype: Any,
) -> Float[jax.Array, "B T D"]:
    """Returns sqrt(D) * E[token], plus the language embedding of each token where there is one: [B, T, D].

    A new token has its row in `lang`, where it stands as it is added here.

    Raises: ValueError if `lang` is not what `Params` describes: under another name it would be left out.
    """
    if not set(params.lang) <= {"vector", "table", "input", "output"}:
        raise ValueError(
            f"lang holds {sorted(params.lang)}; it is {{'vector': ..}} or {{'table': ..}}, with new tokens also input and output"
        )
    scale = jnp.asarray(
        config.d_model**0.5, dtype
    )  # rounded to the compute dtype, as the reference does
    table = params.base["embed"]
    if "input" in params.lang:
        first, new = table.shape[0], params.lang["input"]
        old = table[jnp.minimum(tokens, first - 1)].astype(dtype) * scale
        rows = new[jnp.maximum(tokens - first, 0)].astype(dtype)
        x = jnp.where((tokens >= first)[..., None], rows, old)
    else:
        x = table[tokens].astype(dtype) * scale
    if "vector" in params.lang:
        x = x + params.lang["vector"][langs].astype(dtype)
    if "table" in params.lang:
        x = x + params.lang["table"][langs, tokens].astype(dtype)
    return spread(x)


def run_block(
    config: ModelConfig,
    layer: Tree,
    rope: Rope,
    attend: Attend,
    x: Float[jax.Array, "B T D"],
    adapters: Adapters | None,
) -> Float[jax.Array, "B T D"]:
    out: Any = Block(config).apply({"params": layer}, x, rope, attend, adapters)
    return spread(out)


def forward(
    params: Params,
    config: ModelConfig,
    inputs: Inputs,
    *,
    dtype: Any,
    remat: str = "none",
    attention: str = "auto",
    dropout: float = 0.0,
    dropout_key: jax.Array | None = None,
) -> Float[jax.Array, "B T D"]:
    """Returns the hidden states after the final norm, [B, T, D] in `dtype`.

    remat: what the backward pass makes again of each layer, by the name of a policy (`model.remat`).
    attention: which kernel computes it, by name (`model.kernel`).
    dropout: on the adapters' inputs (added layers have none); needs `dropout_key`.
    """
    x = embed(params, config, inputs.tokens, inputs.langs, dtype)
    view = make_view(config, inputs.seen, attention)

    def body(x: jax.Array, layer: LayerInputs) -> tuple[jax.Array, None]:
        return run_layer(config, view, layer, x, params.lora_scale, dropout, remat), None

    front, back = (edge_inputs(params, config, side) for side in SIDES)
    for stack in (*front, layer_inputs(params, config, dropout_key), *back):
        x, _ = jax.lax.scan(body, x, stack)
    return rms_norm(x, params.base["final_norm"], config.rms_eps)


@struct.dataclass
class LayerInputs:
    """What one step of a layer scan reads; every leaf has a leading axis, L or as many as were added, before it."""

    plan: LayerPlan
    base: Tree
    lora: Tree
    key: jax.Array | None


def layer_inputs(params: Params, config: ModelConfig, dropout_key: jax.Array | None) -> LayerInputs:
    """Returns the base's layers with their adapters.

    Raises: ValueError on an adapter of no matrix, which would never be applied.
    """
    if not set(params.lora) <= set(ADAPTABLE):
        raise ValueError(
            f"lora holds {sorted(params.lora)}; the matrices of a block are {', '.join(ADAPTABLE)}"
        )
    keys = None if dropout_key is None else jax.random.split(dropout_key, config.n_layers)
    return LayerInputs(make_plan(config), params.base["layers"], params.lora, keys)


def edge_inputs(params: Params, config: ModelConfig, side: str) -> list[LayerInputs]:
    """Returns the one stack of layers added at `side`, [] without any: of their source's kind, no LoRA, no dropout."""
    n = n_edge_blocks(params, side)
    kind = config.layer_kinds[0 if side == FRONT else -1]
    return (
        [LayerInputs(LayerPlan(jnp.full(n, kind == LOCAL)), params.expand[side], {}, None)]
        if n
        else []
    )


def run_layer(
    config: ModelConfig,
    view: View,
    layer: LayerInputs,
    x: Float[jax.Array, "B T D"],
    lora_scale: float,
    dropout: float = 0.0,
    remat: str = "none",
) -> Float[jax.Array, "B T D"]:
    """Returns the residual stream [B, T, D] after one layer of the uncached model. remat: as in `forward`."""
    is_local = layer.plan.is_local
    rope = view.rope(is_local)
    adapters = Adapters(layer.lora, layer.key, lora_scale, dropout) if layer.lora else None

    def attend(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        return checkpoint_name(view.attend(q, k, v, is_local), ATTENDED)

    def run(x: jax.Array, base: Tree, adapters: Adapters | None) -> jax.Array:
        return run_block(config, base, rope, attend, x, adapters)

    return jax.checkpoint(run, policy=policy(remat), prevent_cse=False)(x, layer.base, adapters)


@jax.named_scope("head")
def project_logits(
    base: Tree,
    hidden: Float[jax.Array, "*rows D"],
    new_rows: Float[jax.Array, "N D"] | None = None,
) -> Float[jax.Array, "*rows V"]:
    """Returns float32 logits [..., V] of hidden states [..., D] through the head (`head_table`).

    new_rows: of the head, for tokens behind the base's (`new_head_rows`); their logits follow, [..., V + N].
    """

    def through(table: jax.Array) -> jax.Array:
        table = table.astype(hidden.dtype)
        return jnp.einsum("...d,vd->...v", hidden, table, preferred_element_type=jnp.float32)

    logits = through(head_table(base))
    if new_rows is None:
        return logits
    return jnp.concatenate([logits, through(new_rows)], axis=-1)
