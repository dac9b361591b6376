"""What tests/conftest.py holds for every test."""

import ast
import gc
import pathlib


class _Grudging:
    """Found by the collector only, and raising there."""

    def __init__(self):
        self.itself = self

    def __del__(self):
        raise ValueError("as an orbax coroutine that nobody awaits")


def test_source_is_parsed_while_the_collector_finds_what_raises():
    source = pathlib.Path(__file__).read_text(encoding="utf-8")
    before = gc.get_threshold()
    try:
        for threshold in range(1, 200):
            _Grudging()
            gc.set_threshold(threshold)
            ast.parse(source)
    finally:
        gc.set_threshold(*before)
