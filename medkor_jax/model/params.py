"""The four parameter trees, and what each leaf of the base must look like.

    params = Params(base=load(...), lora={}, lang={}, expand={})
    abstract_base(config, jnp.bfloat16)["layers"]["q"].shape     # (L, D, N*H)

`base` never changes in training; the other three are small and learn. All matrices are stored
[in, out], layers stacked on a leading L axis. Shapes come from the modules' own declarations
(`layers.Block`), so no shape is written twice.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from flax import struct

from medkor_jax.model.config import GLOBAL, LOCAL, ModelConfig
from medkor_jax.model.dtypes import float_of, is_quantized
from medkor_jax.model.layers import ADAPTABLE, Block
from medkor_jax.model.quantized import Quantized

if TYPE_CHECKING:
    from jaxtyping import Float, Int

Tree = dict[str, Any]

SIDES = FRONT, BACK = "front", "back"  # the two ends where layers of `Params.expand` stand

LEARNED = {"lora": "LoRA", "lang": "language embeddings", "expand": "added layers"}
"""The trees that learn, as `Params` names them -> in words; the fourth, `base`, never does."""

TRAINABLE_TREES = tuple(LEARNED)


def matrix_sizes(config: ModelConfig) -> list[tuple[int, int]]:
    """Returns (in, out) of the seven matrices of a layer, in the order of `ADAPTABLE`."""
    d, f, queries, keys = (
        config.d_model,
        config.d_ff,
        config.n_heads * config.head_dim,
        config.n_kv_heads * config.head_dim,
    )
    return [(d, queries), (d, keys), (d, keys), (queries, d), (d, f), (d, f), (f, d)]


class Params(struct.PyTreeNode):
    """base, lora, lang, expand as in DESIGN section 4; an empty dict is an absent tree.

    lora[name] = {"a": [L, in, R], "b": [L, R, out]}; `lora_scale` = alpha / rank multiplies A @ B.
    lang = {"vector": [2, D]} or {"table": [2, V, D]}, row 0 English, row 1 Korean; or with N new tokens, whose ids begin at V,
    {"vector": [2, D], "input": [N, D], "output": [N, D]}: their rows of both embeddings, times sqrt(D).
    expand = {"front": block, "back": block}, either may be absent: leaves as in base["layers"], stacked on the
    number of blocks at that end. Front blocks run before all layers, back blocks after them, without LoRA.
    """

    base: Tree
    lora: Tree = struct.field(default_factory=dict)
    lang: Tree = struct.field(default_factory=dict)
    expand: Tree = struct.field(default_factory=dict)
    lora_scale: float = struct.field(pytree_node=False, default=1.0)


@struct.dataclass
class LayerPlan:
    """Per-layer facts as data, scanned beside the weights. is_local: [L] bool."""

    is_local: jax.Array


def make_plan(config: ModelConfig) -> LayerPlan:
    return LayerPlan(is_local=jnp.array([kind == LOCAL for kind in config.layer_kinds]))


def layer_kinds(params: Params, config: ModelConfig) -> tuple[str, ...]:
    """Returns the attention kind of every layer of the whole model: added in front, the base's, added behind.

    Added layers have the kind of the layer they copy, so the base's own keep theirs wherever they come to stand.
    """
    front, back = (n_edge_blocks(params, side) for side in SIDES)
    return config.layer_kinds[:1] * front + config.layer_kinds + config.layer_kinds[-1:] * back


def edge_blocks(params: Params, side: str) -> list[Tree]:
    """Returns the blocks added at `side`, "front" or "back", in the order they run; [] if there are none."""
    return [
        {name: leaf[i] for name, leaf in params.expand[side].items()}
        for i in range(n_edge_blocks(params, side))
    ]


def n_edge_blocks(params: Params, side: str) -> int:
    """Returns how many blocks were added at `side`.

    Raises: ValueError if `expand` is not what `Params` describes: a block under another name would never run.
    """
    if side not in SIDES or not set(params.expand) <= set(SIDES):
        raise ValueError(
            f"expand holds {sorted(params.expand)}, asked for {side!r}; its sides are {FRONT!r} and {BACK!r}"
        )
    counts = {name: leaf.shape[0] for name, leaf in params.expand.get(side, {}).items()}
    if len(set(counts.values())) > 1:
        raise ValueError(
            f"the leaves of expand[{side!r}] disagree on the number of blocks: {counts}"
        )
    return max(counts.values(), default=0)


def abstract_base(config: ModelConfig, dtype: Any) -> Tree:
    """Returns the base tree as ShapeDtypeStructs: what a loader must fill, leaf by leaf.

    dtype int8: the matrices of the layers are `Quantized`; tables and norms, which are looked up or small, are bfloat16.
    """
    in_int8, dtype = is_quantized(dtype), jnp.dtype(float_of(dtype))
    x = jax.ShapeDtypeStruct((1, 1, config.d_model), dtype)
    block = Block(config, param_dtype=dtype)
    layer = jax.eval_shape(lambda x: block.init(jax.random.key(0), x, method=Block.declare), x)[
        "params"
    ]
    stacked: Tree = {
        name: jax.ShapeDtypeStruct((config.n_layers, *leaf.shape), dtype)
        for name, leaf in layer.items()
    }
    if in_int8:
        stacked |= {name: _abstract_quantized(stacked[name].shape) for name in ADAPTABLE}
    head = (
        {}
        if config.tied_head
        else {"head": jax.ShapeDtypeStruct((config.vocab_size, config.d_model), dtype)}
    )
    return {
        "embed": jax.ShapeDtypeStruct((config.vocab_size, config.d_model), dtype),
        "final_norm": jax.ShapeDtypeStruct((config.d_model,), dtype),
        "layers": stacked,
        **head,
    }


def _abstract_quantized(shape: tuple[int, ...]) -> Quantized:
    scale = (*shape[:-2], 1, shape[-1])
    return Quantized(
        jax.ShapeDtypeStruct(shape, jnp.int8), jax.ShapeDtypeStruct(scale, jnp.float32)
    )


def head_table(base: Tree) -> Float[jax.Array, "V D"]:
    """Returns the output head [V, D]: the embedding, unless the base brought a head of its own."""
    return base.get("head", base["embed"])


def n_new_tokens(params: Params) -> int:
    """Returns how many tokens the model has rows for behind the base's."""
    return params.lang["output"].shape[0] if "output" in params.lang else 0


def new_head_rows(params: Params) -> Float[jax.Array, "N D"] | None:
    """Returns the rows of the head that stand behind `head_table`, None if there are none. These learn."""
    if "output" not in params.lang:
        return None
    rows = params.lang["output"]
    return rows * rows.shape[-1] ** -0.5


def head_rows(params: Params, ids: Int[jax.Array, "*ids"]) -> Float[jax.Array, "*ids D"]:
    """Returns the head's rows of these tokens, new ones too."""
    table, new = head_table(params.base), new_head_rows(params)
    if new is None:
        return table[ids]
    first = table.shape[0]
    old = table[jnp.minimum(ids, first - 1)].astype(new.dtype)
    return jnp.where((ids >= first)[..., None], new[jnp.maximum(ids - first, 0)], old)


def leaf_paths(tree: Any, is_leaf: Callable[[Any], bool] | None = None) -> dict[str, Any]:
    """Returns {"layers/q": leaf, ...}: one spelling of a leaf's name for rules, digests and errors."""
    flat, _ = jax.tree_util.tree_flatten_with_path(tree, is_leaf)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in flat}


def matrix_paths(tree: Any) -> dict[str, Any]:
    """Returns the same of a base, its matrices in int8 whole: {"layers/q": Quantized(..), ...}."""
    return leaf_paths(tree, lambda node: isinstance(node, Quantized))


def n_leaves_and_params(tree: Any) -> tuple[int, int]:
    leaves = jax.tree.leaves(tree)
    return len(leaves), sum(leaf.size for leaf in leaves)


__all__ = [
    "ADAPTABLE",
    "BACK",
    "FRONT",
    "GLOBAL",
    "LEARNED",
    "LOCAL",
    "SIDES",
    "TRAINABLE_TREES",
    "LayerPlan",
    "Params",
    "Tree",
    "abstract_base",
    "edge_blocks",
    "head_rows",
    "head_table",
    "layer_kinds",
    "leaf_paths",
    "make_plan",
    "matrix_paths",
    "n_edge_blocks",
    "n_leaves_and_params",
    "n_new_tokens",
    "new_head_rows",
]
