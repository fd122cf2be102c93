"""What the calls in a pickle of PyTorch or NumPy describe: storages, tensors and arrays, as plain data.

`CALLS` is all that a pickle may call for the sake of its result.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from kpjax.convert.inert_objects import is_harmless

MOST = 1 << 63  # PyTorch's integers have 64 bits; longer ones can be chosen to share a hash
KEYS = (str, int, float, bool, bytes, type(None))  # keys of dictionaries: what is hashed in constant time
_MOST_AXES = 64  # NumPy's limit


class PickleRefused(ValueError):
    """The pickle holds something that is not read here.  Its text is one line."""


@dataclasses.dataclass(frozen=True)
class Name:
    """A class or function that the pickle names, e.g. `torch.FloatStorage`.  Never looked up."""

    text: str


@dataclasses.dataclass(slots=True)
class Shell:
    """An object that is not made: the name of its class, and what it holds if it is a kind of dictionary."""

    name: str
    items: dict[Any, Any] | None = None


@dataclasses.dataclass(frozen=True)
class Storage:
    """The numbers of one or several tensors; they lie elsewhere in the file, under `key`, or are `held` here.

    unread: PyTorch's name of their kind where it is one whose numbers are not read, such as complex ones.
    """

    key: str
    dtype: np.dtype
    numel: int
    unread: str = ""
    held: bytes | None = None


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A view of a storage: offset and strides in numbers, as PyTorch has them."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


# Sizes in bytes of the kinds of numbers that are only skipped.
_UNREAD = {"ComplexFloat": 8, "ComplexDouble": 16, "QInt8": 1, "QUInt8": 1, "QUInt4x2": 1, "QUInt2x4": 1, "QInt32": 4}


@functools.cache
def _dtypes() -> dict[str, np.dtype]:
    import ml_dtypes  # JAX brings it

    names = {"Float": "f4", "Double": "f8", "Half": "f2", "Long": "i8", "Int": "i4", "Short": "i2", "Char": "i1"}
    names |= {"Byte": "u1", "Bool": "?"}
    found = {f"torch.{name}Storage": np.dtype(code) for name, code in names.items()}
    found["torch.BFloat16Storage"] = np.dtype(ml_dtypes.bfloat16)
    found["torch.storage.UntypedStorage"] = np.dtype("u1")  # bytes; the tensor says of what
    # Kinds that newer files have in bytes; names of dtypes, as is `torch.uint16` itself.
    found |= {f"torch.uint{8 * size}": np.dtype(f"u{size}") for size in (1, 2, 4, 8)}
    found |= {f"torch.{name}": np.dtype(getattr(ml_dtypes, name)) for name in ("float8_e4m3fn", "float8_e5m2")}
    return found | {f"torch.{name}Storage": np.dtype(f"V{size}") for name, size in _UNREAD.items()}


def storage_of(reference: Any) -> Storage | Name:
    """PyTorch's reference to a storage, a pickle's persistent id; old files also have them to classes of modules.

    Raises PickleRefused.
    """
    described = reference if isinstance(reference, tuple) else ()
    if len(described) == 4 and described[0] == "module" and isinstance(described[1], Name):
        return described[1]
    if not (isinstance(reference, tuple) and len(reference) in (5, 6) and reference[0] == "storage"):
        raise PickleRefused("it refers to something that is not a tensor's storage")
    _, kind, key, _, numel = reference[:5]
    dtype = _dtypes().get(kind.text) if isinstance(kind, Name) else None
    if dtype is None:
        # Never print a container: if each level holds the next one twice, its text grows exponentially.
        named = kind.text if isinstance(kind, Name) else type(kind).__name__
        raise PickleRefused(f"its numbers are of a kind that is not read here ({named:.60})")
    if len(reference) == 6 and reference[5] is not None:
        raise PickleRefused("it holds views of storages, as PyTorch before 0.4 wrote them; save it with a newer one")
    if not isinstance(key, str) or not _counts(numel):
        raise PickleRefused("a reference to a storage is damaged")
    unread = kind.text.removeprefix("torch.").removesuffix("Storage") in _UNREAD
    return Storage(key, dtype, numel, unread=kind.text if unread else "")


def _counts(*values: Any) -> bool:
    """Whether all are counts that PyTorch can have."""
    return all(isinstance(value, int) and 0 <= value < MOST for value in values)


def _is_shape(value: Any) -> bool:
    return isinstance(value, tuple) and len(value) <= _MOST_AXES and _counts(*value)


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> Tensor:
    if not (isinstance(storage, Storage) and _counts(offset) and _is_shape(shape) and _is_shape(strides)):
        raise PickleRefused("a tensor's description is damaged")
    if len(shape) != len(strides):
        raise PickleRefused("a tensor's description is damaged")
    count = 1
    for side in shape:
        count *= side
    last = offset + sum((side - 1) * stride for side, stride in zip(shape, strides, strict=True))
    if count and (last >= storage.numel or count > storage.numel):
        raise PickleRefused(f"a tensor of {count} numbers reaches beyond its storage of {storage.numel}")
    return Tensor(storage, offset, shape, strides)


def _tensor_of_bytes(storage: Any, offset: Any, shape: Any, strides: Any, *rest: Any) -> Tensor:
    """A tensor of a kind that has no storage class of its own: rest is (.., .., dtype, ..)."""
    kind = rest[2] if len(rest) > 2 else None
    if not (isinstance(storage, Storage) and isinstance(kind, Name)):
        raise PickleRefused("a tensor's description is damaged")
    dtype = _dtypes().get(kind.text)
    unread = "" if dtype else kind.text
    if dtype is None:  # of unknown size: a view of nothing, which is refused where it is asked for
        return Tensor(dataclasses.replace(storage, unread=unread), 0, (0,), (1,))
    if storage.numel % dtype.itemsize:
        raise PickleRefused("a tensor's description is damaged")
    return _tensor(
        dataclasses.replace(storage, dtype=dtype, numel=storage.numel // dtype.itemsize), offset, shape, strides
    )


def _tensor_subclass(function: Any, _kind: Any = None, arguments: Any = (), *_: Any) -> Any:
    if isinstance(function, Name) and function.text in _TENSORS and isinstance(arguments, tuple):
        return _TENSORS[function.text](*arguments)
    if isinstance(function, Name) and is_harmless(function.text):
        return Shell(function.text)
    raise PickleRefused("a tensor's description is damaged")


class Array:
    """A NumPy array or scalar while it is built."""

    def __init__(self) -> None:
        self.value: np.ndarray | Shell = np.zeros(0, np.float32)

    def build(self, state: Any) -> None:
        _, shape, dtype, fortran, data = state
        if not _is_shape(shape):
            raise PickleRefused("a NumPy array's description is damaged")
        kind = _numpy_dtype(dtype)
        if kind.kind not in "fiub":
            named = next((item.text for item in data if isinstance(item, Name)), "") if isinstance(data, list) else ""
            if named:
                raise PickleRefused(f"refused: it holds a NumPy array of objects, {named:.80} among them, not numbers")
            self.value = Shell(f"NumPy array of {kind}, which is not numbers")
            return
        data = data.encode("latin1") if isinstance(data, str) else data  # Python 2 wrote a string
        flat = np.frombuffer(data, kind)  # at most as many as there are bytes
        self.value = flat.reshape(shape, order="F" if fortran else "C")


class DType:
    def __init__(self, code: str) -> None:
        self.code, self.order = code, "|"

    def build(self, state: Any) -> None:
        self.order = state[1]


def _numpy_dtype(described: Any) -> np.dtype:
    if not isinstance(described, DType):
        raise PickleRefused("a NumPy array's type is damaged")
    dtype = np.dtype(described.code)
    return dtype.newbyteorder(">") if described.order == ">" else dtype


def _dtype(code: Any, *_: Any) -> DType:
    code = code.decode("ascii") if isinstance(code, bytes) else code
    if not isinstance(code, str) or len(code) > 16:
        raise PickleRefused("a NumPy array's type is damaged")
    return DType(code)


def _scalar(dtype: Any, data: Any) -> Any:
    kind = _numpy_dtype(dtype)
    return np.frombuffer(data, kind)[0].item() if kind.kind in "fiub" else Shell(f"NumPy {kind}")


def put(target: Any, key: Any, value: Any) -> None:
    """Set an item of a dictionary, or of an object that may be one."""
    if isinstance(target, Shell):  # a dictionary of a class of its own
        if isinstance(key, str):
            target.items = target.items or {}
            target.items[key] = value
        return
    if not isinstance(target, dict) or not isinstance(key, (*KEYS, tuple, Name, Shell)):
        raise PickleRefused(f"it is damaged: a {type(key).__name__} as a key of a {type(target).__name__}")
    if isinstance(key, int) and abs(key) >= MOST:
        raise PickleRefused("it is damaged: a key that is a number of more than 64 bits")
    if isinstance(key, KEYS):  # weights are under texts; a tuple could be one whose hash takes for ever
        target[key] = value


def _ordered(pairs: Any = ()) -> dict[Any, Any]:
    result: dict[Any, Any] = {}
    for key, value in pairs:
        put(result, key, value)
    return result


def _encode(text: Any, *_: Any) -> bytes:
    return text.encode("latin1")


def _bytes(*arguments: Any) -> Any:
    return Shell("bytes") if arguments else b""  # protocol 2 has no other way to write empty ones


_TENSORS: dict[str, Callable[..., Any]] = {
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _tensor_of_bytes,
    "torch._utils._rebuild_parameter": lambda data, *_: data,
    "torch._utils._rebuild_parameter_with_state": lambda data, *_: data,
}
# What a pickle may call, and what we do instead.
CALLS: dict[str, Callable[..., Any]] = {
    **_TENSORS,
    "torch._tensor._rebuild_from_type_v2": _tensor_subclass,
    "torch.Size": lambda sides=(): tuple(sides),
    "collections.OrderedDict": _ordered,
    "collections.defaultdict": lambda *_: {},
    "builtins.bytes": _bytes,
    "__builtin__.bytes": _bytes,
    "_codecs.encode": _encode,
    **{f"numpy.{core}.multiarray._reconstruct": lambda *_: Array() for core in ("core", "_core")},
    **{f"numpy.{core}.multiarray.scalar": _scalar for core in ("core", "_core")},
    "numpy.dtype": _dtype,
}
