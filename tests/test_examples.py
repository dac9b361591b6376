"""The examples in module docstrings and the commands of the pages: they parse, what they call is there, and takes the arguments that they give it.

An example is what stands four spaces in. Nothing of it is run here (the commands of the pages are, in
test_page_commands.py): a name that is only used (`config`, `params`) stands for a
value that the reader has, and may be anything. What is called must exist, in the module itself or elsewhere in the package;
so must what is asked of a value whose type is known, as it came of a call to something of ours.
"""

import ast
import builtins
import collections
import contextlib
import functools
import importlib
import inspect
import io
import pathlib
import pkgutil
import re
import shlex
import types
import typing

import pytest

import medkor_jax
from medkor_jax import cli

ROOT = pathlib.Path(__file__).parents[1]
MODULES = sorted(info.name for info in pkgutil.walk_packages(medkor_jax.__path__, "medkor_jax."))
# What stands four spaces in and is no Python: tables, formulas and texts, by their first word.
NOT_PYTHON = {
    "data.pairs": "English:", "data.reasoning": "Reasoning:<R>", "data.text": "text", "eval.gate": "absolute",
    "model.kernel": "plain", "model.remat": "none", "parallel.hub": "to", "plan.handcount": "layer,", "train.policy": "ratio",
}  # fmt: skip
OTHERS = {
    "jax": "jax",
    "jnp": "jax.numpy",
    "np": "numpy",
    "json": "json",
    "pathlib": "pathlib",
    "functools": "functools",
    "transformers": None,
}
UNKNOWN = object()


@functools.cache
def module_of(name):
    return importlib.import_module(name)


@functools.cache
def defined():
    """Returns {name: everything of this name that some module of ours defines}."""
    found = collections.defaultdict(list)
    for module in map(module_of, MODULES):
        for name, value in vars(module).items():
            if getattr(value, "__module__", None) == module.__name__ and not name.startswith("_"):
                found[name].append(value)
    return found


def blocks(docstring):
    """Yields every run of lines that stand four spaces in, as one text."""
    block = []
    for line in [*docstring.split("\n"), ""]:
        if line.startswith("    "):
            block.append(line[4:])
        elif block:
            yield "\n".join(block)
            block = []


class Example(ast.NodeVisitor):
    """What an example's names are, as far as can be known. faults: what it says that is not so."""

    def __init__(self, module):
        self.module, self.known, self.faults = module, {}, []

    def candidates(self, name):
        """Returns what a name may mean: this module's own, else of the package, else of Python."""
        if name in self.known:
            return [self.known[name]]
        if name in OTHERS:
            return [importlib.import_module(OTHERS[name]) if OTHERS[name] else UNKNOWN]
        *packages, last = self.module.__name__.split(".")
        if name in packages or name == last:  # `hosts.say(...)` in hosts itself
            return [module_of(".".join([*packages, last][: [*packages, last].index(name) + 1]))]
        if hasattr(self.module, name):
            return [getattr(self.module, name)]
        found = defined().get(name, [])
        return found or ([getattr(builtins, name)] if hasattr(builtins, name) else [])

    def value(self, node):
        """Returns (what an expression names, or UNKNOWN; the type of its value, or UNKNOWN)."""
        if isinstance(node, ast.Name):
            if node.id in self.known:
                return UNKNOWN, self.known[node.id]
            own = next(
                (
                    one
                    for name, one in vars(self.module).items()
                    if inspect.isclass(one) and name.lower() == node.id
                ),
                None,
            )
            if own is not None:  # `course` is a Course
                return UNKNOWN, own
            found = self.candidates(node.id)
            return (found[0] if len(found) == 1 else UNKNOWN), UNKNOWN
        if isinstance(node, ast.Attribute):
            return self.attribute(node)
        if isinstance(node, ast.Call):
            return UNKNOWN, self.call(node)
        if isinstance(node, ast.Subscript):
            return UNKNOWN, element_of(self.value(node.value)[1])
        return UNKNOWN, UNKNOWN

    def attribute(self, node):
        owner, kind = self.value(node.value)
        if isinstance(owner, types.ModuleType) or inspect.isclass(owner):
            if not hasattr(owner, node.attr):
                self.faults.append(f"{owner.__name__} has no {node.attr}")
                return UNKNOWN, UNKNOWN
            return getattr(owner, node.attr), UNKNOWN
        kind = typing.get_origin(kind) or kind
        if not inspect.isclass(kind) or kind.__module__.split(".")[0] != "medkor_jax":
            return UNKNOWN, UNKNOWN
        static = inspect.getattr_static(kind, node.attr, None)
        try:
            hints = typing.get_type_hints(kind)
        except NameError:  # a name that only a type checker imports
            return UNKNOWN, UNKNOWN
        if static is None and node.attr not in hints and not assigns(kind, node.attr):
            self.faults.append(f"{kind.__name__} has no {node.attr}")
            return UNKNOWN, UNKNOWN
        if isinstance(static, (property, functools.cached_property)):
            return UNKNOWN, returned(static.fget if isinstance(static, property) else static.func)
        return (static if callable(static) else UNKNOWN), hints.get(node.attr, UNKNOWN)

    def call(self, node):
        """Binds the call's arguments; returns the type of what it returns, or UNKNOWN."""
        if isinstance(node.func, ast.Name):
            if node.func.id in self.known:
                return UNKNOWN
            found, name = self.candidates(node.func.id), node.func.id
            if not found:
                self.faults.append(f"{name} is not there")
        else:
            (value, _), name = (
                self.attribute(node.func)
                if isinstance(node.func, ast.Attribute)
                else (UNKNOWN, UNKNOWN),
                ast.unparse(node.func),
            )
            found = [value]
        refused = [why for one in found if (why := self.binds(one, node))]
        if found and len(refused) == len(found):
            self.faults.append(f"{name}: {'; '.join(refused)}")
            return UNKNOWN
        fitting = [one for one in found if not self.binds(one, node)]
        return returned(fitting[0]) if len(fitting) == 1 else UNKNOWN

    def binds(self, function, node):
        """Returns why the arguments do not fit, or "". A `...` among them stands for more."""
        if (
            function is UNKNOWN
            or not callable(function)
            or not getattr(function, "__module__", "").startswith("medkor_jax")
        ):
            return ""
        signature = inspect.signature(function)
        is_method = (
            isinstance(node.func, ast.Attribute)
            and inspect.isfunction(function)
            and "." in function.__qualname__
        )
        given = [None] * (is_method and next(iter(signature.parameters), "") == "self")
        is_whole = True
        for argument in node.args:
            is_more = isinstance(argument, ast.Starred) or (
                isinstance(argument, ast.Constant) and argument.value is ...
            )
            is_whole &= not is_more
            given += [] if is_more else [None]
        named = {keyword.arg: None for keyword in node.keywords if keyword.arg}
        try:
            (signature.bind if is_whole else signature.bind_partial)(*given, **named)
        except TypeError as error:
            return str(error)
        return ""

    def name_it(self, target, kind):
        if isinstance(target, ast.Name):
            self.known[target.id] = kind
        elif isinstance(target, ast.Tuple):
            parts = typing.get_args(kind) if typing.get_origin(kind) is tuple else ()
            for i, one in enumerate(target.elts):
                self.name_it(one, parts[i] if len(parts) == len(target.elts) else UNKNOWN)

    def visit_Assign(self, node):
        self.visit(node.value)
        for target in node.targets:
            self.name_it(target, self.value(node.value)[1])

    def visit_NamedExpr(self, node):
        self.visit(node.value)
        self.name_it(node.target, self.value(node.value)[1])

    def visit_With(self, node):
        for item in node.items:
            self.visit(item.context_expr)
            if item.optional_vars is not None:
                self.name_it(item.optional_vars, self.value(item.context_expr)[1])
        for line in node.body:
            self.visit(line)

    def visit_For(self, node):
        self.visit(node.iter)
        self.name_it(node.target, UNKNOWN)
        for line in node.body:
            self.visit(line)

    def visit_comprehension(self, node):
        self.visit(node.iter)
        self.name_it(node.target, element_of(self.value(node.iter)[1]))

    def visit_ListComp(self, node):
        for one in node.generators:
            self.visit(one)
        self.visit(node.elt)

    def visit_Call(self, node):
        self.call(node)
        for part in [
            *node.args,
            *(keyword.value for keyword in node.keywords),
            getattr(node.func, "value", None),
        ]:
            if part is not None:
                self.visit(part)

    def visit_Attribute(self, node):
        self.attribute(node)
        self.visit(node.value)


def returned(function):
    """Returns the type of what a call to it gives, or UNKNOWN."""
    if inspect.isclass(function):
        return function
    function = getattr(function, "__func__", function)
    if not inspect.isfunction(function):
        return UNKNOWN
    hint = function.__annotations__.get("return", UNKNOWN)
    if isinstance(hint, str):
        try:
            hint = eval(hint, function.__globals__)
        except NameError:  # a name that only a type checker imports
            return UNKNOWN
    if isinstance(hint, types.UnionType):  # X | None: what is asked of it is asked of X
        (hint, *more) = [one for one in typing.get_args(hint) if one is not types.NoneType]
        return UNKNOWN if more else hint
    return hint


def element_of(kind):
    """Returns the type of an element of list[X], tuple[X, ...] or dict[_, X], or UNKNOWN."""
    arguments = typing.get_args(kind)
    if typing.get_origin(kind) in (list, dict) or (
        typing.get_origin(kind) is tuple and arguments[1:] == (...,)
    ):
        return arguments[0 if typing.get_origin(kind) in (list, tuple) else 1]
    return UNKNOWN


def assigns(kind, name):
    """Whether a class sets self.name somewhere in its source."""
    return any(
        re.search(rf"self\.{name}\b[^=]*[^=!<>]=[^=]", inspect.getsource(one))
        for one in kind.__mro__
        if one.__module__.startswith("medkor_jax")
    )


def faults_of(docstring, module):
    """Returns all that the examples of a docstring say which is not so, a line each."""
    example, faults = Example(module), []
    for block in blocks(docstring):
        words = block.split()
        if NOT_PYTHON.get(module.__name__.removeprefix("medkor_jax.")) == words[0]:
            continue
        if words[0] in ("medkor", "python"):
            faults += [why for line in block.split("\n") if (why := fault_of_command(line))]
            continue
        try:
            example.visit(ast.parse(block))
        except SyntaxError as error:
            faults.append(f"does not parse: {error.text!r}")
    return faults + list(dict.fromkeys(example.faults))


def fault_of_command(line):
    """Returns why `medkor ...` or `python -m ...` is no command of ours, or ""."""
    first, *arguments = shlex.split(line, comments=True)
    if first == "python":
        return "" if arguments[1] in MODULES else f"{arguments[1]} is not there"
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            _, more = cli.make_parser().parse_known_args(arguments)
    except SystemExit:
        return f"not understood: {line}: {said.getvalue().strip().splitlines()[-1]}"
    unknown = [one for one in more if one.startswith("-") and not one.startswith("--config.")]
    return f"{', '.join(unknown)} of {line}" if unknown else ""


def faults_of_page(page):
    """Returns what is no command of ours among those that a page shows: lines of a block, and pieces of code with options in
    them, which may leave out what a reader knows."""
    whole, mentioned = commands_of(page)
    faults = [why for one in whole if (why := fault_of_command(one))]
    more = [why for one in mentioned if (why := fault_of_command(one))]
    return faults + [why for why in more if "arguments are required" not in why]


def commands_of(page):
    """Returns the commands in the blocks of a page, and those in its text."""
    text = page.replace("\\\n", " ")
    blocks = re.findall(r"(?ms)^```\w*\n(.*?)^```", text)
    lines = [line for block in blocks for line in block.split("\n")]
    lines += [line[4:] for line in text.split("\n") if line.startswith("    ")]
    prose = re.sub(r"(?ms)^```\w*\n.*?^```", "", text)
    inline = (" ".join(code.split()) for code in re.findall(r"`([^`]+)`", prose))
    mentioned = [part for code in inline for part in code.split("; ") if " --" in part]
    return [
        [one.strip() for one in found if one.strip().startswith("medkor ")]
        for found in (lines, mentioned)
    ]


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_of_a_module_bind(name):
    module = module_of(name)
    assert not faults_of(module.__doc__ or "", module)


EXAMPLE = """Merges.

    lora = make_lora(base, key, rank=16, targets=("q", "v"))
    merged = merge(base, lora, scale=alpha / rank)
"""


@pytest.mark.parametrize("old, new, words", [
    ("rank=16", "rank=16, ranks=1", "make_lora: got an unexpected keyword argument 'ranks'"), ("key, ", "", "missing a required argument: 'key'"),
    ("merge(", "merge_all(", "merge_all is not there"), ("scale=", "scale=(", "does not parse"),
])  # fmt: skip
def test_a_stale_example_is_found(old, new, words):
    module = module_of("medkor_jax.adapt.lora")
    assert not faults_of(EXAMPLE, module)
    (fault,) = faults_of(EXAMPLE.replace(old, new), module)
    assert words in fault


def test_what_is_asked_of_a_known_value_must_be_there():
    module = module_of("medkor_jax.eval.gate")
    asked = "Judges.\n\n    judgement = judge(gate, report)\n    judgement.{}\n"
    assert not faults_of(asked.format("words"), module)
    assert faults_of(asked.format("wording"), module) == ["Judgement has no wording"]


PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *(ROOT / "launch").glob("*.md")])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_commands_of_a_page_are_understood(page):
    assert faults_of_page(page.read_text("utf-8")) == []


def test_a_stale_command_of_a_page_is_found():
    page = "`medkor eval --exam medqa\n--modes letter`.\n\n    medkor eval --weights W --exam E --mode lettre   # why\n"
    page += (
        "\n```bash\nmedkor run --config C \\\n  --config.a=1 --dry-run\nmedkor eval --exam E\n```\n"
    )
    page = page.replace("medkor eval --exam medqa", "medkor eval --weights W --exam medqa")
    assert [len(found) for found in commands_of(page)] == [3, 1]
    faults = faults_of_page(page)
    assert len(faults) == 3 and "--modes" in faults[2]
    assert "--weights" in faults[0] and "'lettre'" in faults[1]
