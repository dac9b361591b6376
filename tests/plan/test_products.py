"""FLOPs of single products, against counting every multiplication, and against einsums the TPU compiler rewrote."""

import itertools

import pytest

from medkor_jax.plan.hlo import Shape, parse
from medkor_jax.plan.products import product_flops


def flops(line, *operands):
    module = parse("HloModule m\n\nENTRY %main (a: f32[1]) -> f32[1] {\n  " + line + "\n}\n")
    (instruction,) = module.computations["main"].values()
    return product_flops(instruction, [Shape("f32", sizes) for sizes in operands])


def test_a_dot_counts_a_multiplication_and_an_addition_for_each_pair():
    line = "ROOT %d = f32[3,5,7]{2,1,0} dot(%a, %b), lhs_batch_dims={0}, lhs_contracting_dims={2}, rhs_batch_dims={0}, rhs_contracting_dims={1}"
    assert flops(line, (3, 5, 11), (3, 11, 7)) == 2 * 3 * 5 * 7 * 11


# What libtpu made of bkxh,bksh->bkxs and bti,io->bto (heads in a spatial dimension of the output).
FROM_TPU = {
    "scores": (
        "ROOT %c = f32[2,2,512,1024]{3,2,1,0:T(8,128)} convolution(%q, %k), window={size=2x2 lhs_dilate=2x2}, dim_labels=01bf_01oi->01bf",
        ((2, 2, 512, 16), (2, 2, 1024, 16)), 2 * 2 * 2 * 512 * 1024 * 16,
    ),
    "heads": (
        "ROOT %c = bf16[2,1024,4,16,1]{1,3,4,2,0:T(8,128)(2,1)S(1)} convolution(%x, %w), window={size=1x4x2 pad=0_0x3_3x0_0 rhs_reversal=0x1x0}, "
        "dim_labels=0b2f1_1o2i0->0b1f2",
        ((2, 1024, 2, 16, 1), (4, 16, 2, 16, 1)), 2 * 2 * 1024 * 64 * 32,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FROM_TPU)
def test_what_the_tpu_made_of_an_einsum_has_the_einsums_flops(name):
    line, operands, wanted = FROM_TPU[name]
    assert flops(line, *operands) == wanted


@pytest.mark.parametrize(
    "stride, low, high, dilate_left, dilate_right",
    list(itertools.product((1, 2), (0, 2), (0, 1), (1, 3), (1, 2))),
)
def test_a_window_counts_the_pairs_that_meet_an_input(stride, low, high, dilate_left, dilate_right):
    n_in, n_kernel = 5, 3
    holed = (n_in - 1) * dilate_left + 1
    n_out = (holed + low + high - ((n_kernel - 1) * dilate_right + 1)) // stride + 1
    if n_out < 1:
        pytest.skip("the window is wider than the input")
    real = [i % dilate_left == 0 for i in range(holed)]
    padded = [False] * low + real + [False] * high
    pairs = sum(
        padded[o * stride + k * dilate_right] for o in range(n_out) for k in range(n_kernel)
    )
    window = f"size={n_kernel} stride={stride} pad={low}_{high} lhs_dilate={dilate_left} rhs_dilate={dilate_right}"
    line = f"ROOT %c = f32[4,{n_out},6]{{2,1,0}} convolution(%a, %b), window={{{window}}}, dim_labels=b0f_0io->b0f"
    assert flops(line, (4, n_in, 7), (n_kernel, 7, 6)) == 2 * 4 * 7 * 6 * pairs
