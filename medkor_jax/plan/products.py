"""FLOPs of one matrix product of a compiled program, exactly: a multiplication and an addition count 2.

    product_flops(instruction, operand_shapes)         # a `dot` or a `convolution`

The TPU compiler writes every matrix product as a convolution, and batched ones with the batch in a dilated window: most
places of such a window meet a hole or the padding. Only pairs of a real input and a kernel's place are multiplied.
"""

from __future__ import annotations

import math
import re
from typing import Sequence

from medkor_jax.plan.hlo import Instruction, Shape

PRODUCTS = ("dot", "convolution")


def product_flops(instruction: Instruction, operands: Sequence[Shape]) -> int:
    """Returns 2 for each multiplication that `instruction` makes. operands: the shapes of its two factors."""
    left, right = operands
    (out,) = instruction.shapes
    if instruction.opcode == "dot":
        contracted = [int(i) for i in instruction.attribute("lhs_contracting_dims").strip("{}").split(",") if i]
        return 2 * out.n * math.prod(left.sizes[i] for i in contracted)
    return _convolution_flops(instruction, left, right, out)


def _convolution_flops(instruction: Instruction, left: Shape, right: Shape, out: Shape) -> int:
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", instruction.attributes)
    if not labels:
        raise ValueError(f"convolution {instruction.name!r} does not name its dimensions")
    of_left, of_right, of_out = (dict(zip(labels[i + 1], shape.sizes)) for i, shape in enumerate((left, right, out)))
    window = _window(instruction.attribute("window"))
    groups = int(instruction.attribute("batch_group_count") or 1)
    pairs = math.prod(
        _pairs(of_left[sign], of_right[sign], of_out[sign], **{name: values[i] for name, values in window.items() if values})
        for i, sign in enumerate(sorted(sign for sign in of_out if sign.isdigit()))
    )
    return 2 * of_left["b"] // groups * of_right["i"] * of_out["f"] * pairs


def _window(text: str) -> dict[str, list]:
    """Returns {name: a value for each spatial dimension} of `{size=2x2 pad=0_0x1_1 lhs_dilate=2x2}`."""
    found = dict(re.findall(r"(\w+)=(\S+)", text.strip("{}")))
    whole = lambda name: [int(n) for n in found[name].split("x")] if name in found else []  # noqa: E731
    pads = [tuple(int(n) for n in pad.split("_")) for pad in found["pad"].split("x")] if "pad" in found else []
    return {"stride": whole("stride"), "pad": pads, "dilate_left": whole("lhs_dilate"), "dilate_right": whole("rhs_dilate")}


def _pairs(
    n_in: int, n_kernel: int, n_out: int, stride: int = 1, pad: tuple[int, int] = (0, 0), dilate_left: int = 1, dilate_right: int = 1
) -> int:
    """Returns how many (place of the output, place of the kernel) meet a real input along one dimension."""
    if n_kernel == 1 and pad == (0, 0) and dilate_left == 1:
        return n_out
    last = (n_in - 1) * dilate_left
    count = 0
    for k in range(n_kernel):
        # the input that output place o meets is o * stride + shift, in a grid where every dilate_left-th place is real
        shift = k * dilate_right - pad[0]
        if dilate_left == 1:
            low, high = -(shift // stride), (last - shift) // stride
            count += max(0, min(high, n_out - 1) - max(low, 0) + 1)
        else:
            count += sum(1 for o in range(n_out) if 0 <= (at := o * stride + shift) <= last and at % dilate_left == 0)
    return count
