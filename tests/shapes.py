"""Shapes in signatures, checked: `q: Float[jax.Array, "B T N H"]` is held to what comes in and what goes out, in tests only.

The package itself never imports jaxtyping: there such annotations are text. Here every module that has some is changed as
soon as it is imported, before anybody takes a function from it: each function with shapes is replaced by one that looks at
them. A letter means the same size in all arguments of a call and in its result. NumPy arrays count as jax's do. What has
no array in its signature (trees, dataclasses) is not looked at, nor what is jitted: it is by what it calls.
"""

import functools
import importlib.abc
import importlib.machinery
import inspect
import sys
import typing

import jaxtyping
import numpy as np

NAMES = {name: getattr(jaxtyping, name) for name in ("Bool", "Float", "Int", "UInt")}
WITH_SHAPES = ("medkor_jax.model.", "medkor_jax.adapt.", "medkor_jax.train.")


class WrongShape(TypeError):
    """An array of another shape or kind than the signature says."""


def has_shapes(function) -> bool:
    return any(f"{name}[" in str(hint) for hint in getattr(function, "__annotations__", {}).values() for name in NAMES)


def fits(value, hint) -> bool:
    """Whether an array is what a hint, or one of its alternatives, says; sizes of letters are remembered in jaxtyping's context."""
    if alternatives := typing.get_args(hint):
        return any(fits(value, one) for one in alternatives)
    if not hasattr(hint, "dim_str"):
        return True
    return isinstance(value, (hint, hint.dtype[np.ndarray, hint.dim_str]))


def checked(function):
    """Returns the function, which raises WrongShape where an array is not as its signature says."""
    signature = inspect.signature(function)
    plain = inspect.unwrap(function)

    @functools.cache
    def hints():
        texts = {name: text for name, text in plain.__annotations__.items() if any(f"{kind}[" in text for kind in NAMES)}
        return {name: _evaluated(text, plain.__globals__) for name, text in texts.items()}

    @functools.wraps(function)
    def call(*positional, **named):
        given = signature.bind(*positional, **named).arguments
        with jaxtyping.jaxtyped("context"):
            for name, hint in hints().items():
                if name in given and not fits(given[name], hint):
                    raise WrongShape(_words(plain, name, given[name], given))
            result = function(*positional, **named)
            returned = result if not isinstance(result, tuple) else result[0]
            if "return" in hints() and not fits(returned, hints()["return"]):
                raise WrongShape(_words(plain, "return", returned, given))
        return result

    return call


def _evaluated(text, names):
    """Of `tuple[Float[...], Cache]` the array, which stands first, is what is looked at."""
    return eval(text.removeprefix("tuple[").split(", kv.")[0], names | NAMES)


def _words(function, name, value, given) -> str:
    shapes = {key: np.shape(one) for key, one in given.items() if hasattr(one, "shape")}
    return f"{function.__qualname__}: {name} is {getattr(value, 'dtype', type(value))} {np.shape(value)}, expected {function.__annotations__[name]}; given {shapes}"


class Finder(importlib.abc.MetaPathFinder):
    """Finds modules as ever; those of the rooms with shapes come with a loader that puts the checks in."""

    def find_spec(self, name, path, target=None):
        if not name.startswith(WITH_SHAPES):
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        if spec is not None and isinstance(spec.loader, importlib.machinery.SourceFileLoader):
            spec.loader = Loader(spec.loader.name, spec.loader.path)
        return spec


class Loader(importlib.machinery.SourceFileLoader):
    def exec_module(self, module):
        super().exec_module(module)
        for name, value in list(vars(module).items()):
            if inspect.isfunction(value) and value.__module__ == module.__name__ and has_shapes(value):
                setattr(module, name, checked(value))


def check_shapes() -> None:
    """From now on every module of the package with shapes in its signatures is imported with checks."""
    sys.meta_path.insert(0, Finder())
