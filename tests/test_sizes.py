"""No file over 300 lines, no function over 60 lines or 8 parameters, unless a sentence here says why. Reads the source with `ast`."""

import ast
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parents[1]
FILES = sorted([*(ROOT / "medkor_jax").rglob("*.py"), *(ROOT / "configs").glob("*.py")])
MOST_LINES, MOST_FUNCTION_LINES, MOST_PARAMETERS = 300, 60, 8

# function -> why it takes more than eight parameters. All of these are given by name.
MANY_PARAMETERS = {
    "medkor_jax/commands/ask.py ask": "what `medkor ask` can be asked for, one argument an option",
    "medkor_jax/bench/best.py run_best": "what `medkor bench` can be asked for, one argument an option",
    "medkor_jax/bench/sides.py measure": "a case whole: what is timed, what it is worth, how it may be prepared and checked",
    "medkor_jax/commands/data_translate.py translate_exam": "what `medkor data translate` can be asked for, one argument an option",
    "medkor_jax/commands/eval.py evaluate_file": "what `medkor eval` can be asked for, one argument an option",
    "medkor_jax/commands/eval.py evaluate_pairs": "the same",
    "medkor_jax/data/batches.py __init__": "a stream's settings; a cursor holds each of them by its name",
    "medkor_jax/eval/exam.py evaluate": "how an exam is sat; a report holds most of them by their names",
    "medkor_jax/eval/translation.py evaluate_translation": "the same of a translation",
    "medkor_jax/eval/verdict.py write_verdict": "all that a verdict records, each by its name",
    "medkor_jax/train/rollout.py __init__": "as of data/batches.py, whose place it takes",
    "medkor_jax/model/decode.py __init__": "a decoder's settings, fixed when it is compiled",
}
# function -> why it is longer than a screen.
LONG = {
    "medkor_jax/train/losses.py _against_tokens": "one online softmax: its nested loops share ten arrays that would else be passed through each",
}


def _place(file: pathlib.Path) -> str:
    return file.relative_to(ROOT).as_posix()


def _functions(file: pathlib.Path):
    """Yields (its name here, its node) of every function and method."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield f"{_place(file)} {node.name}", node


def _n_parameters(node: ast.FunctionDef) -> int:
    given = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
    return len([one for one in given if one.arg not in ("self", "cls")])


@pytest.mark.parametrize("file", FILES, ids=_place)
def test_a_file_is_read_in_one_go(file):
    n = len(file.read_text(encoding="utf-8").splitlines())
    assert n <= MOST_LINES, f"{_place(file)} has {n} lines: split it by what it is about"


@pytest.mark.parametrize("file", FILES, ids=_place)
def test_a_function_fits_a_screen_and_takes_few_parameters(file):
    for name, node in _functions(file):
        n = node.end_lineno - node.lineno + 1
        assert n <= MOST_FUNCTION_LINES or name in LONG, f"{name} has {n} lines"
        n = _n_parameters(node)
        assert n <= MOST_PARAMETERS or name in MANY_PARAMETERS, f"{name} takes {n} parameters"


def test_every_exception_is_needed():
    needed = {
        name
        for file in FILES
        for name, node in _functions(file)
        if _n_parameters(node) > MOST_PARAMETERS
    }
    assert set(MANY_PARAMETERS) <= needed
