"""Damaged and strange files: every reader returns, or says in one sentence which file is wrong."""

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from medkor_jax.io.safetensors_file import read_safetensors_header
from medkor_jax.io.streaming import WeightsError

from . import targets

EDITS = st.lists(
    st.tuples(
        st.sampled_from(("byte", "cut", "drop", "insert", "twice")),
        st.floats(0, 1, exclude_max=True),
        st.binary(min_size=1, max_size=4),
    ),
    min_size=1,
    max_size=4,
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=6,
)
FEW = settings(
    max_examples=30,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)
ROWS = {
    "exam, JSON Lines": targets.EXAM,
    "text": targets.CHAT,
    "chat": targets.CHAT,
    "pairs, JSON Lines": targets.PAIR,
    "reasoning": targets.EXAM,
    "answers of a run": targets.ANSWER,
    "config.json": targets.CONFIG,
}


def edited(data, edits):
    for kind, place, new in edits:
        at = int(place * len(data))
        data = {
            "byte": lambda: data[:at] + new + data[at + len(new) :],
            "cut": lambda: data[:at],
            "drop": lambda: data[:at] + data[at + 2 * len(new) :],
            "insert": lambda: data[:at] + new + data[at:],
            "twice": lambda: data[:at] + data[at // 2 :],
        }[kind]()
    return data


@pytest.mark.parametrize("name", targets.READERS)
def test_bytes_that_are_not_what_they_were(name, tmp_path):
    good = targets.READERS[name][2]

    @FEW
    @given(which=st.integers(0, len(good) - 1), edits=EDITS)
    def damaged(which, edits):
        targets.read(name, edited(good[which], edits), tmp_path)

    for data in good:
        targets.read(name, data, tmp_path)
    damaged()


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("GGUF header", b"gemma3", b"gemma" + b"\xff" * 9),
        ("GGUF header", b"\x06\0\0\0\0\0\0\0gemma3", b"\xff" * 8 + b"gemma3"),
        ("exam, Parquet", b"question", b"que\x80tion"),
        ("exam, Parquet", b"ARROW:schema", b"ARROW:schemb"),
        ("exam, gzip", b"\x1f\x8b\x08", b"\x1f\x8b\x08\xff"),
    ],
)
def test_what_was_found_by_many_more_inputs(name, old, new, tmp_path):
    data = targets.READERS[name][2][0]
    assert old in data
    targets.read(name, data.replace(old, new), tmp_path)


@pytest.mark.parametrize("name", ROWS)
def test_values_of_other_kinds(name, tmp_path):
    row = ROWS[name]

    @FEW
    @given(key=st.sampled_from(sorted(row)), value=VALUES)
    def strange(key, value):
        data = json.dumps(row | {key: value})
        targets.read(name, (data + "\n").encode("utf-8", "surrogatepass"), tmp_path)

    strange()


@pytest.mark.parametrize("key, value", [
    ("data_offsets", [0.16]), ("data_offsets", [0.5, 16]), ("data_offsets", [0, 16, 16]), ("data_offsets", {"0": 16}), ("data_offsets", 16),
    ("shape", [-2, -2]), ("shape", [True, 4]), ("shape", [2**62, 4, 4]), ("shape", "4"), ("shape", None), ("dtype", []), ("dtype", None),
])  # fmt: skip
def test_a_safetensors_header_with_other_things_than_sizes(key, value, tmp_path):
    entry = {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}
    path = tmp_path / "x.safetensors"

    def read(entry):
        header = json.dumps({"w": entry}).encode()
        path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(16))
        return read_safetensors_header(path)

    assert read(entry)["w"].n_bytes == 16
    with pytest.raises(WeightsError, match=r"x\.safetensors is (no|in)"):
        read(entry | {key: value})
