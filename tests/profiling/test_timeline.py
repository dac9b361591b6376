import pytest

from medkor_jax.profiling import timeline
from medkor_jax.profiling.programs import Op, read_programs
from medkor_jax.profiling.timeline import BATCHES, Event, kind_of, share_out

LAYER = "jit(step)/transpose(jvp())/while/body/closed_call/checkpoint/Block"


@pytest.mark.parametrize(
    "op, kind",
    [
        (Op("fusion", f"{LAYER}/bti,io->bto/dot_general", True), timeline.PRODUCTS),
        (Op("fusion", f"{LAYER}/attention/bkxh,bksh->bkxs/dot_general", True), timeline.ATTENTION),
        (Op("fusion", "jit(step)/transpose(jvp(head))/mul", False), timeline.HEAD),
        (Op("fusion", "jit(step)/optimizer/add", False), timeline.OPTIMIZER),
        (Op("all-gather-start", f"{LAYER}/attention/dot_general", False), timeline.COLLECTIVES),
        (Op("fusion", f"{LAYER}/mul", False), timeline.REST),
        (Op("fusion", "jit(step)/overhead/mul", False), timeline.REST),
    ],
)
def test_kinds(op, kind):
    assert kind_of(op) == kind


def test_moments_are_shared_and_a_loop_counts_only_where_nothing_in_it_runs():
    events = [
        Event(0, 100, BATCHES, weight=0),  # until 10 nothing else runs
        Event(10, 90, "loop", "step", weight=1),
        Event(20, 60, "a", "step"),
        Event(40, 80, "b", "step", is_remade=True),
    ]
    spent = share_out(events)
    seconds = {kind: round(1e9 * value, 6) for kind, value in spent.seconds.items()}
    assert seconds == {BATCHES: 20, "loop": 20, "a": 30, "b": 30}
    assert spent.total == pytest.approx(100e-9)
    assert spent.programs["step"] == pytest.approx(80e-9)
    assert spent.remade == pytest.approx(30e-9)


def _field(number, value):
    if isinstance(value, int):
        return _varint(number << 3) + _varint(value)
    return _varint(number << 3 | 2) + _varint(len(value)) + value


def _varint(n):
    out = bytearray()
    while n > 127:
        out.append(n & 127 | 128)
        n >>= 7
    return bytes([*out, n])


def test_programs_are_read_off_the_wire():
    dot = (
        _field(1, b"dot.3")
        + _field(2, b"dot")
        + _field(7, _field(2, b"jit(f)/attention/dot_general"))
    )
    fused = _field(5, 70_000) + _field(2, dot)
    fusion = _field(1, b"fusion.1") + _field(2, b"fusion") + _field(38, _varint(70_000))  # packed
    call = (
        _field(1, b"gemm.1")
        + _field(2, b"custom-call")
        + _field(28, b"__cublas$gemm")
        + _field(38, 70_000)
    )
    module = _field(3, fused) + _field(3, _field(5, 2) + _field(2, fusion) + _field(2, call))
    metadata = _field(2, b"jit_f(6)") + _field(5, _field(1, 1) + _field(6, _field(1, module)))
    plane = _field(2, b"/host:metadata") + _field(4, _field(1, 6) + _field(2, metadata))
    found = read_programs(_field(1, _field(2, b"/host:CPU")) + _field(1, plane))
    assert found == {
        "jit_f(6)": {
            "dot.3": Op("dot", "jit(f)/attention/dot_general", True),
            "fusion.1": Op("fusion", "jit(f)/attention/dot_general", True),
            "gemm.1": Op("custom-call", "", True),
        }
    }
    with pytest.raises(ValueError, match="no trace"):
        read_programs(b"\x0f")
