"""Each small truth is written once: what stands here may stand in its own file and in no other of the package."""

import pathlib
import re

import pytest

PACKAGE = pathlib.Path(__file__).parents[1] / "medkor_jax"

HOMES = {
    r"\bdifflib\b": {"nearest.py"},
    r"\bhashlib\.sha256\b": {"data/contents.py", "run/seeds.py"},  # a seed made of a digest's bytes
    r"float16 overflows": {"model/dtypes.py", "io/export.py"},  # a note in what is written
    r'\(?"float32", "bfloat16"\)': {"model/dtypes.py"},
    r'"q", "k", "v"': {"model/layers.py"},
    r'"lora", "lang"': {"nearest.py"},  # its docstring's example
    r"end_of_turn_id": {"data/tokenizer.py"},
    r'"language embeddings"': {"model/params.py"},
    r'= "embedded"': {"data/source.py", "io/embedded_model.py"},  # the exam's name, and the model's
    r'"data", "fsdp"': {"parallel/mesh.py"},
    r"skip_special_tokens": {"data/tokenizer_engines.py"},
}


@pytest.mark.parametrize("pattern", HOMES)
def test_a_truth_has_one_home(pattern):
    found = {
        file.relative_to(PACKAGE).as_posix()
        for file in PACKAGE.rglob("*.py")
        for line in file.read_text(encoding="utf-8").splitlines()
        if re.search(pattern, line) and not line.lstrip().startswith("#")
    }
    assert found <= HOMES[pattern]
