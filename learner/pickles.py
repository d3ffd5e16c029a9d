"""River models as bytes, and back, without trusting the bytes.

River's own format is pickle, which runs code by design. Here a pickle may name nothing but River's model classes,
numbers, arrays and plain containers; it is checked for length and SHA-256 before it is parsed; and it is read only by
the River version that wrote it, since River's pickles do not load across versions.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import io
import pickle
import types
from typing import Any

import numpy as np

from featurestore.errors import FormatError

#: River's packages whose classes are models or their parts; the others read files, sockets or the network.
_PACKAGES = frozenset(
    """_river_rust base cluster compose covariance drift dummy ensemble facto feature_extraction feature_selection
    forest imblearn impute linear_model metrics misc multiclass naive_bayes neighbors neural_net optim preprocessing
    proba rules sketch stats tree utils""".split()  # noqa: SIM905 - thirty quoted names are harder to read
)
_NAMES = frozenset(
    [("builtins", name) for name in ("bool", "complex", "dict", "float", "int", "str")]
    + [("builtins", name) for name in ("frozenset", "list", "set", "tuple")]
    + [("collections", name) for name in ("Counter", "OrderedDict", "defaultdict", "deque")]
    + [("datetime", name) for name in ("datetime", "timedelta")]
    + [("functools", "partial"), ("random", "Random")]
    + [("numpy._core.multiarray", "_reconstruct"), ("numpy._core.multiarray", "scalar")]
    + [("numpy._core.numeric", "_frombuffer"), ("numpy", "dtype"), ("numpy", "ndarray")]
    + [("numpy.random._pickle", name) for name in ("__randomstate_ctor", "__bit_generator_ctor")]
    + [("numpy.random._mt19937", "MT19937")]
    + [("river._river_rust.vectordict", f"euclidean_distance_{kind}") for kind in ("dict", "tuple")]
)
_BROKEN = (
    pickle.UnpicklingError,
    ArithmeticError,
    AttributeError,
    EOFError,
    ImportError,
    LookupError,
    MemoryError,
    RecursionError,
    TypeError,
    ValueError,
)


def river_version() -> str:
    """The installed River."""
    return importlib.metadata.version("river")


def dump_model(model: Any) -> dict[str, Any]:  # noqa: ANN401 - River is not typed
    """A River model as plain values: its pickle, length and SHA-256, and River's version."""
    data = pickle.dumps(model, protocol=5)
    return {"river": river_version(), "length": len(data), "sha256": hashlib.sha256(data).hexdigest(), "pickle": data}


def load_model(state: dict[str, Any]) -> Any:  # noqa: ANN401
    """The model that `dump_model` was given. Raises FormatError for anything else, before any of its code runs."""
    data, version = state["pickle"], state["river"]
    if version != river_version():
        raise FormatError(
            f"the model was written by River {version} and this is River {river_version()}, which cannot read it: "
            f"install river=={version}, or train the model anew by a replay"
        )
    if len(data) != state["length"] or hashlib.sha256(data).hexdigest() != state["sha256"]:
        raise FormatError("the model's bytes do not match their checksum: restore the file from a copy, or train anew")
    try:
        model = _Unpickler(io.BytesIO(data)).load()
    except _BROKEN as error:
        raise FormatError(f"the model cannot be read ({error}): use an earlier version of it, or train anew") from error
    if not _of_river(type(model)):
        raise FormatError(f"the file holds a {type(model).__name__}, not a River model: use another version of it")
    return model


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:  # noqa: ANN401
        if (module, name) == ("builtins", "getattr"):
            return _bound_method
        if (module, name) in _NAMES:
            return super().find_class(module, name)
        root, _, rest = module.partition(".")
        if root == "river" and rest.split(".")[0] in _PACKAGES and "datasets" not in rest:
            found = super().find_class(module, name)
            if isinstance(found, type) and _of_river(found) and not issubclass(found, BaseException):
                return found
            if name.count(".") == 1 and isinstance(found, types.FunctionType) and found.__name__.startswith("_make_"):
                return found  # a model's own factory, which its defaultdicts call
        raise pickle.UnpicklingError(f"it names {module}.{name}, which no River model needs")


def _of_river(kind: type) -> bool:
    return kind.__module__.partition(".")[0] == "river"


def _bound_method(owner: Any, name: str) -> Any:  # noqa: ANN401
    """What pickle writes `getattr` for, and no more: a method that a model keeps of itself."""
    found = None if name.startswith("__") or not _of_river(type(owner)) else getattr(type(owner), name, None)
    if not isinstance(found, types.FunctionType):
        raise pickle.UnpicklingError(f"it asks for attribute {name!r} of a {type(owner).__name__}")
    return types.MethodType(found, owner)


def digest(model: Any) -> str:  # noqa: ANN401
    """SHA-256 over all that a model holds, part by part: equal for equal numbers, however they were stored.

    (A pickle's own hash will not do: pickling a restored model gives other bytes.)
    """
    hasher = hashlib.sha256()
    seen: dict[int, int] = {}
    kept: list[Any] = []  # what `seen` knows by id must live on, or the id may be used again
    stack = [model]
    while stack:
        part = stack.pop()
        if part is None or isinstance(part, bool | int | float | complex | str | bytes):
            text = part.hex() if isinstance(part, float) else repr(part)
            hasher.update(f"{type(part).__name__}:{text};".encode())
        elif id(part) in seen:
            hasher.update(f"again:{seen[id(part)]};".encode())
        else:
            seen[id(part)] = len(seen)
            kept.append(part)
            label, children = _taken_apart(part)
            hasher.update(f"{label}:{len(children)};".encode())
            stack.extend(reversed(children))
    return hasher.hexdigest()


def _taken_apart(part: Any) -> tuple[str, list[Any]]:  # noqa: ANN401
    """A label and the parts that tell `part` from others of its label."""
    kind = type(part)
    label = kind.__name__
    children: list[Any] = []
    if isinstance(part, type | types.FunctionType | types.BuiltinFunctionType) and not _is_bound(part):
        label = f"{part.__module__}.{part.__qualname__}"
    elif isinstance(part, np.ndarray | np.generic) and part.dtype != object:
        label, children = f"array:{part.dtype.str}:{part.shape}", [part.tobytes()]
    elif kind in (list, tuple):
        children = list(part)
    elif kind in (set, frozenset):
        children = sorted(part, key=repr)
    elif kind is dict:
        # The generator of a part without a seed is not state that anyone can repeat: models draw from seeded ones only.
        left_out = "_rng" if part.get("seed", 0) is None else None
        children = [each for key, value in part.items() if key != left_out for each in (key, value)]
    else:  # as pickle sees it: a callable, its arguments, state, list items and dict items
        reduced = part.__reduce_ex__(4)
        parts = (reduced,) if isinstance(reduced, str) else reduced[:5]
        children = [list(each) if i > 2 and each is not None else each for i, each in enumerate(parts)]
    return label, children


def _is_bound(part: Any) -> bool:  # noqa: ANN401
    owner = getattr(part, "__self__", None)
    return owner is not None and not isinstance(owner, types.ModuleType)
