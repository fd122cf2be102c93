"""Reading a pickle as data: nothing that it names is imported, and nothing is called.

A pickle is a program for a stack machine whose one dangerous instruction calls whatever it names.  This reader
knows the instructions that build plain containers; a named thing is only its name, and a call is looked
up in a table of what PyTorch, NumPy and the standard containers need.  All else is refused.  Python's own
unpickler is not used: it can be made to fill the memory with 20 bytes (a memo index, a stated length).
"""

from __future__ import annotations

import dataclasses
import pickletools
from collections.abc import Callable
from typing import Any, BinaryIO

import numpy as np

_KEYS = (str, int, float, bool, bytes, type(None))  # keys of dictionaries: what is hashed in constant time
MAX_INSTRUCTIONS = 5_000_000  # a checkpoint of a thousand tensors with its optimizer takes some 100,000
_MOST = 1 << 63  # PyTorch's integers have 64 bits; longer ones can be chosen to share a hash
_MOST_AXES = 64  # NumPy's limit
_LONGEST_NAME = 1000
_SLACK = 100_000  # elements that calls may copy beyond those the pickle has bytes for


class PickleRefused(ValueError):
    """The pickle holds something that is not read here.  Its text is one line."""


@dataclasses.dataclass(frozen=True)
class Name:
    """A class or function that the pickle names, e.g. `torch.FloatStorage`.  Never looked up."""

    text: str


@dataclasses.dataclass
class Shell:
    """An object of a known harmless class, none of whose contents is used."""

    name: str


@dataclasses.dataclass(frozen=True)
class Storage:
    """The numbers of one or several tensors; they lie elsewhere in the file, under `key`."""

    key: str
    dtype: np.dtype
    numel: int


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A view of a storage: offset and strides in numbers, as PyTorch has them."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def _dtypes() -> dict[str, np.dtype]:
    import ml_dtypes  # JAX brings it

    names = {"Float": "f4", "Double": "f8", "Half": "f2", "Long": "i8", "Int": "i4", "Short": "i2", "Char": "i1"}
    names |= {"Byte": "u1", "Bool": "?"}
    found = {f"torch.{name}Storage": np.dtype(code) for name, code in names.items()}
    return found | {"torch.BFloat16Storage": np.dtype(ml_dtypes.bfloat16)}


def storage_of(reference: Any) -> Storage:
    """PyTorch's reference to a storage, a pickle's persistent id.  Raises PickleRefused."""
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
    return Storage(key, dtype, numel)


def _counts(*values: Any) -> bool:
    """Whether all are counts that PyTorch can have."""
    return all(isinstance(value, int) and 0 <= value < _MOST for value in values)


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


class _Array:
    """A NumPy array or scalar while it is built."""

    def __init__(self) -> None:
        self.value: np.ndarray = np.zeros(0, np.float32)

    def build(self, state: Any) -> None:
        _, shape, dtype, fortran, data = state
        if not _is_shape(shape):
            raise PickleRefused("a NumPy array's description is damaged")
        data = data.encode("latin1") if isinstance(data, str) else data  # Python 2 wrote a string
        flat = np.frombuffer(data, _numpy_dtype(dtype))  # at most as many as there are bytes
        self.value = flat.reshape(shape, order="F" if fortran else "C")


class _DType:
    def __init__(self, code: str) -> None:
        self.code, self.order = code, "|"

    def build(self, state: Any) -> None:
        self.order = state[1]


def _numpy_dtype(described: Any) -> np.dtype:
    if not isinstance(described, _DType):
        raise PickleRefused("a NumPy array's type is damaged")
    dtype = np.dtype(described.code)
    if dtype.kind not in "fiub":
        raise PickleRefused(f"it holds a NumPy array of {dtype}, which is not numbers")
    return dtype.newbyteorder(">") if described.order == ">" else dtype


def _dtype(code: Any, *_: Any) -> _DType:
    code = code.decode("ascii") if isinstance(code, bytes) else code
    if not isinstance(code, str) or len(code) > 8:
        raise PickleRefused("a NumPy array's type is damaged")
    return _DType(code)


def _scalar(dtype: Any, data: Any) -> Any:
    return np.frombuffer(data, _numpy_dtype(dtype))[0].item()


def _ordered(pairs: Any = ()) -> dict[Any, Any]:
    result: dict[Any, Any] = {}
    for key, value in pairs:
        _put(result, key, value)
    return result


def _encode(text: Any, *_: Any) -> bytes:
    return text.encode("latin1")


def _shell(name: str) -> Callable[..., Shell]:
    return lambda *_: Shell(name)


# What a pickle may call, and what we do instead.
_CALLS: dict[str, Callable[..., Any]] = {
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_parameter": lambda data, *_: data,
    "torch.Size": lambda sides=(): tuple(sides),
    "collections.OrderedDict": _ordered,
    "collections.defaultdict": lambda *_: {},
    "_codecs.encode": _encode,
    **{f"numpy.{core}.multiarray._reconstruct": lambda *_: _Array() for core in ("core", "_core")},
    **{f"numpy.{core}.multiarray.scalar": _scalar for core in ("core", "_core")},
    "numpy.dtype": _dtype,
    # Training frameworks' records beside the weights: skipped.
    **{
        name: _shell(name)
        for name in (
            "torch.device",
            "argparse.Namespace",
            "collections.Counter",
            "builtins.set",
            "__builtin__.set",
            "mmengine.logging.history_buffer.HistoryBuffer",
            "mmengine.config.config.ConfigDict",
        )
    },
}


def _put(target: Any, key: Any, value: Any) -> None:
    if isinstance(target, Shell):
        return
    if not isinstance(target, dict) or not isinstance(key, _KEYS):
        raise PickleRefused(f"it is damaged: a {type(key).__name__} as a key of a {type(target).__name__}")
    if isinstance(key, int) and abs(key) >= _MOST:
        raise PickleRefused("it is damaged: a key that is a number of more than 64 bits")
    target[key] = value


def _extent(values: Any) -> int:
    """How much a call with these arguments may copy."""
    if not isinstance(values, (tuple, list)):
        return 1
    return len(values) + sum(len(v) for v in values if isinstance(v, (str, bytes, tuple, list, dict)))


def _call(function: Any, arguments: Any) -> Any:
    if not isinstance(function, Name) or not isinstance(arguments, tuple):
        raise PickleRefused("it calls something that is not a named function")
    if function.text not in _CALLS:
        raise PickleRefused(
            f"refused: loading it would call {function.text:.80}; files of tensors and plain containers are read"
        )
    return _CALLS[function.text](*arguments)


def _build(target: Any, state: Any) -> None:
    if isinstance(target, (_Array, _DType)):
        target.build(state)
    elif not isinstance(target, (dict, Shell)):  # of a state dict: its `_metadata`, versions of the modules
        raise PickleRefused(f"it is damaged: a state for a {type(target).__name__}")


_CONSTANTS: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_DICT": dict,
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
    "EMPTY_SET": lambda: Shell("set"),
}
_VALUES = {"INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT", "UNICODE"}
_VALUES |= {"BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8"}
_VALUES |= {"STRING", "BINSTRING", "SHORT_BINSTRING"}  # of Python 2
_MARK = object()


def read(file: BinaryIO, storages: dict[str, Storage] | None = None) -> Any:
    """The one pickle that begins at the file's position: plain containers, numbers, texts, `Tensor`s, arrays.

    storages: gets every storage that the pickle refers to, by its key, those of skipped objects too.
    Raises PickleRefused for anything else; a damaged pickle may also raise ValueError, IndexError and the like.
    """
    stack: list[Any] = []
    memo: dict[int, Any] = {}
    copied, begin = 0, file.tell()

    def since_mark() -> list[Any]:
        for start in range(len(stack) - 1, -1, -1):
            if stack[start] is _MARK:
                items = stack[start + 1 :]
                del stack[start:]
                return items
        raise PickleRefused("it is damaged: a mark is missing")

    def charge(values: Any, position: int) -> None:
        """Limit what calls copy: an argument from the memo costs the file only two bytes."""
        nonlocal copied
        copied += _extent(values)
        if copied > 4 * (position - begin) + _SLACK:
            raise PickleRefused("refused: its calls would copy far more than it holds")

    argument: Any
    position: Any
    for count, (opcode, argument, position) in enumerate(pickletools.genops(file)):
        name = opcode.name
        if count > MAX_INSTRUCTIONS:
            raise PickleRefused("it is too long to be a checkpoint")
        if name in _VALUES:
            stack.append(argument)
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name]())
        elif name in ("PUT", "BINPUT", "LONG_BINPUT"):
            memo[argument] = stack[-1]
        elif name == "MEMOIZE":
            memo[len(memo)] = stack[-1]
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            stack.append(memo[argument])
        elif name == "MARK":
            stack.append(_MARK)
        elif name in ("TUPLE", "LIST", "DICT"):
            items = since_mark()
            as_dict = dict[Any, Any]()
            if name == "DICT":
                for key, value in zip(items[::2], items[1::2], strict=True):
                    _put(as_dict, key, value)
            stack.append({"TUPLE": tuple(items), "LIST": items, "DICT": as_dict}[name])
        elif name in ("TUPLE1", "TUPLE2", "TUPLE3"):
            size = int(name[-1])
            stack[-size:] = [tuple(stack[-size:])]
        elif name in ("SETITEM", "SETITEMS"):
            items = since_mark() if name == "SETITEMS" else [stack.pop(-2), stack.pop()]
            for key, value in zip(items[::2], items[1::2], strict=True):
                _put(stack[-1], key, value)
        elif name in ("APPEND", "APPENDS", "ADDITEMS"):
            items = since_mark() if name != "APPEND" else [stack.pop()]
            if isinstance(stack[-1], list):
                stack[-1].extend(items)
            elif not isinstance(stack[-1], Shell):
                raise PickleRefused(f"it is damaged: items for a {type(stack[-1]).__name__}")
        elif name == "GLOBAL":
            stack.append(Name(".".join(argument.split(" "))))
        elif name == "STACK_GLOBAL":
            attribute, module = stack.pop(), stack.pop()
            if not (isinstance(attribute, str) and isinstance(module, str)):
                raise PickleRefused("it is damaged: a name that is no text")
            if len(attribute) + len(module) > _LONGEST_NAME:
                raise PickleRefused("it is damaged: a name that is too long")
            stack.append(Name(f"{module}.{attribute}"))
        elif name in ("REDUCE", "NEWOBJ"):
            arguments = stack.pop()
            charge(arguments, position)
            stack.append(_call(stack.pop(), arguments))
        elif name == "BUILD":
            state = stack.pop()
            charge(state, position)
            _build(stack[-1], state)
        elif name == "BINPERSID":
            storage = storage_of(stack.pop())
            if storages is not None:
                storages[storage.key] = storage
            stack.append(storage)
        elif name == "STOP":
            return _plain(stack.pop())
        elif name not in ("PROTO", "FRAME"):
            raise PickleRefused(f"refused: it holds the instruction {name}, which no file of tensors needs")
    raise PickleRefused("it is cut off")


def _plain(value: Any) -> Any:
    """Finished arrays in place of those being built, two containers deep: checkpoints have none deeper."""
    if isinstance(value, dict):
        # In place, and each container once: the memo may have put one under a million keys.
        inner = {id(item): item for item in value.values() if isinstance(item, dict)}
        for container in [value, *inner.values()]:
            for key, item in container.items():
                container[key] = item.value if isinstance(item, _Array) else item
    return value.value if isinstance(value, _Array) else value
