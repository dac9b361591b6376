"""docs/TROUBLESHOOTING.md is found by what a program said: each heading is a piece of a sentence that is really said. And what
SECURITY.md promises of our own code."""

import ast
import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parents[1]
HEADINGS = re.findall(r"^### `(.+)`$", (ROOT / "docs/TROUBLESHOOTING.md").read_text(), re.MULTILINE)
OF_OTHERS = {"RESOURCE_EXHAUSTED": "XLA", "No space left on device": "the system"}
SOURCES = sorted((ROOT / "medkor_jax").rglob("*.py")) + sorted((ROOT / "configs").glob("*.py"))


def texts_of(path):
    """Returns the string literals of a file, those that stand together joined, what is filled in as \\0."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value
        elif isinstance(node, ast.JoinedStr):
            yield "".join(
                part.value if isinstance(part, ast.Constant) else "\0" for part in node.values
            )


SAID = [text for path in SOURCES for text in texts_of(path)]


@pytest.mark.parametrize("heading", HEADINGS)
def test_each_heading_is_a_piece_of_what_is_said(heading):
    if heading in OF_OTHERS:
        return
    filled = re.escape(heading).replace("nan", "(nan|\0)")
    assert any(re.search(filled, text) for text in SAID), f"nothing says {heading!r} any more"


def test_the_page_has_each_piece_once():
    assert len(HEADINGS) == len(set(HEADINGS)) > 25


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_is_unpickled_and_no_code_of_others_is_run(path):
    text = path.read_text(encoding="utf-8")
    assert not re.search(
        r"^\s*(import|from) (pickle|dill|cloudpickle|shelve|marshal)\b", text, re.MULTILINE
    )
    for call in (
        "allow_pickle=True",
        "trust_remote_code=True",
        "torch.load(",
        "eval(compile",
        "os.system(",
    ):
        assert call not in text, call
    assert 'HF_TOKEN")' not in text and 'environ["HF_TOKEN' not in text
