"""Who may import whom. Reads the source with `ast`; nothing is imported, functions' imports count too."""

import ast
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parents[1]
PACKAGE = ROOT / "medkor_jax"
FILES = sorted(PACKAGE.rglob("*.py"))
CONFIGS = sorted((ROOT / "configs").glob("*.py"))

# room -> what of ours it may import, beside itself. A room is a folder, or a module at the top.
MAY_IMPORT = {
    "model": ("parallel.mesh",),  # where activations lie
    "data": (),
    "parallel": (),
    "adapt": ("model",),
    "io": (
        "model",
        "data.tokenizer",
        "data.tokenizer_engines",
        "data.new_tokens",
        "data.contents",
        "data.style",
        "data.chat",
        "data.reading",
        "data.licences",
        "parallel",
    ),
    "train": ("model", "adapt", "io", "data", "parallel", "eval.answers"),
    "eval": ("model", "adapt", "io", "data", "parallel"),
    "run": ("model", "adapt", "io", "data", "parallel", "train", "eval"),
    "report": ("data", "io", "parallel", "train", "eval", "run"),
    "plan": ("model", "adapt", "parallel", "train", "run", "io", "data"),
    "profiling": ("model", "adapt", "parallel", "train", "run", "io", "data"),
    "bench": ("model", "adapt", "io", "data", "parallel", "train", "eval", "plan", "run"),
    "commands": (
        "model",
        "adapt",
        "io",
        "data",
        "parallel",
        "train",
        "eval",
        "plan",
        "profiling",
        "bench",
        "run",
        "report",
    ),
}
TOP = {"cli", "__init__", "nearest", "bar"}
EVERYWHERE = ("nearest", "bar")  # below all rooms
BANNED = {
    "data": ("jax", "jaxlib", "flax", "optax", "orbax", "torch"),
    "": (
        "torch",
        "jax.experimental.pjit",
        "pickle",
    ),  # everywhere; torch is for comparisons alone, see NEEDS_TORCH
}
NEEDS_TORCH = {"io/reference.py", "bench"}


def _name(file: pathlib.Path) -> str:
    return ".".join(file.relative_to(ROOT).with_suffix("").parts)


def _imports(file: pathlib.Path) -> set[str]:
    """Returns every dotted name imported anywhere in the file; `from a import b` gives a and a.b."""
    names = set()
    package = _name(file).rsplit(".", 1)[0].split(".")
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            origin = (
                [*package[: len(package) - node.level + 1], node.module or ""]
                if node.level
                else [node.module]
            )
            origin = ".".join(filter(None, origin))
            names |= {origin} | {f"{origin}.{alias.name}" for alias in node.names}
    return names


def _is_within(name: str, packages) -> bool:
    return any(name == package or name.startswith(package + ".") for package in packages)


def _room(file: pathlib.Path) -> str:
    return file.relative_to(PACKAGE).parts[0].removesuffix(".py")


def _ours(file: pathlib.Path) -> set[str]:
    """Returns our modules that the file imports, without the package's name."""
    modules = {_name(f).removesuffix(".__init__") for f in FILES} - {"medkor_jax"}
    return {name.removeprefix("medkor_jax.") for name in _imports(file) & modules}


def _graph(files: list[pathlib.Path]) -> dict[str, set[str]]:
    """Returns which of the files each of them imports, anywhere in it: in functions and for types alone too."""
    modules = {_name(file).removesuffix(".__init__"): file for file in files}
    graph = {}
    for name, file in modules.items():
        found = _imports(file) & set(modules)
        # `from package import module` runs the package as well; it is meant where no module of it is named beside it.
        graph[name] = {
            one for one in found if not any(other.startswith(one + ".") for other in found)
        }
    return graph


def _circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Returns the names that can be reached from themselves, each group of them together."""
    reached = {name: set(imported) for name, imported in graph.items()}
    while True:
        further = {
            name: seen.union(*(reached[one] for one in seen)) for name, seen in reached.items()
        }
        if further == reached:
            break
        reached = further
    inside = {name for name, seen in reached.items() if name in seen}
    groups = {
        tuple(sorted(other for other in inside & reached[name] if name in reached[other]))
        for name in inside
    }
    return [list(group) for group in sorted(groups)]


def test_circles_are_found():
    graph = {"a": {"b"}, "b": {"c"}, "c": {"b", "d"}, "d": set(), "e": {"e"}}
    assert _circles(graph) == [["b", "c"], ["e"]]


def test_no_files_import_each_other_in_a_circle():
    """Deferred imports, and those for types alone, count: a circle cannot be read from its beginning."""
    assert _circles(_graph(FILES + CONFIGS)) == []


def test_every_room_has_a_rule():
    assert {_room(file) for file in FILES} <= set(MAY_IMPORT) | TOP


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_a_room_imports_only_what_stands_below_it(room):
    wrong = {}
    for file in FILES:
        if _room(file) == room:
            allowed = (room, *MAY_IMPORT[room], *EVERYWHERE)
            if names := {name for name in _ours(file) if not _is_within(name, allowed)}:
                wrong[_name(file)] = sorted(names)
    assert wrong == {}


def test_what_is_below_all_rooms_imports_none_of_them():
    assert {name: _ours(PACKAGE / f"{name}.py") for name in EVERYWHERE} == {
        name: set() for name in EVERYWHERE
    }


def test_flax_linen_is_imported_in_one_file():
    importing = [
        _name(file)
        for file in FILES
        if any(_is_within(name, ("flax.linen",)) for name in _imports(file))
    ]
    assert importing == ["medkor_jax.model.layers"]


def test_scipy_is_imported_where_it_is_used():
    """It takes a second, which whoever reads a config need not wait for; a command's own file may."""
    importing = [
        _name(file)
        for file in FILES
        for node in ast.parse(file.read_text(encoding="utf-8")).body
        if isinstance(node, ast.Import | ast.ImportFrom)
        and "scipy" in ast.unparse(node).split(".")[0]
    ]
    assert [name for name in importing if not name.startswith("medkor_jax.commands.")] == []


@pytest.mark.parametrize("file", FILES, ids=_name)
def test_no_banned_library(file):
    banned = BANNED[""] + BANNED.get(_room(file), ())
    where = file.relative_to(PACKAGE).as_posix()
    if any(where.startswith(prefix) for prefix in NEEDS_TORCH):
        banned = tuple(name for name in banned if name != "torch")
    assert not {name for name in _imports(file) if _is_within(name, banned)}
