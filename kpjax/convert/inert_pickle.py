"""Reading a pickle as data: nothing that it names is imported, and nothing is called.

A pickle is a program for a stack machine whose one dangerous instruction calls whatever it names.  This reader
knows the instructions that build plain containers; a named thing is only its name, and a call is looked
up in a table of what PyTorch, NumPy and the standard containers need.  A call that only makes another object
(kpjax.convert.inert_objects) leaves a `Shell` in its place; any other call is refused.  Python's own unpickler is
not used: it can be made to fill the memory with 20 bytes (a memo index, a stated length).
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable
from typing import Any, BinaryIO

from kpjax.convert.inert_objects import is_harmless
from kpjax.convert.inert_values import CALLS, Array, DType, Name, PickleRefused, Shell, Storage, put, storage_of

MAX_INSTRUCTIONS = 5_000_000  # a checkpoint of a thousand tensors with its optimizer takes some 100,000
_LONGEST_NAME = 1000
_SLACK = 100_000  # elements that calls may copy beyond those the pickle has bytes for
ReadNested = Callable[[bytes], Storage]


def _extent(values: Any) -> int:
    """How much a call with these arguments may copy."""
    if not isinstance(values, (tuple, list)):
        return 1
    plain = sum(len(v) for v in values if isinstance(v, (str, bytes, tuple, list, dict)))
    return len(values) + plain + sum(len(v.text) for v in values if isinstance(v, Name))


def _call(function: Any, arguments: Any, nested: ReadNested | None) -> Any:
    if not isinstance(function, Name) or not isinstance(arguments, tuple):
        raise PickleRefused("refused: it calls something that is not a named function")
    name = function.text
    if name in CALLS:
        return CALLS[name](*arguments)
    if name in ("builtins.getattr", "__builtin__.getattr"):
        return _attribute(*arguments)
    if name == "torch.storage._load_from_bytes" and nested and len(arguments) == 1 and isinstance(arguments[0], bytes):
        return nested(arguments[0])
    made = arguments[0] if arguments and name.startswith(("copyreg.", "copy_reg.")) else function  # what it makes
    if not is_harmless(name) or not isinstance(made, Name) or not (made.text in CALLS or is_harmless(made.text)):
        named = made.text if isinstance(made, Name) and is_harmless(name) else name
        raise PickleRefused(
            f"refused: loading it would call {named:.80}; files of tensors and plain containers are read"
        )
    return Shell(made.text)


def _attribute(owner: Any = None, attribute: Any = None, *_: Any) -> Name:
    """A method or a member of an object that is not made, or of its class; only its name, as everything named."""
    named = owner.text if isinstance(owner, Name) else owner.name if isinstance(owner, Shell) else ""
    allowed = isinstance(owner, Shell) or is_harmless(named)
    if not named or not allowed or not isinstance(attribute, str) or len(named) + len(attribute) > _LONGEST_NAME:
        raise PickleRefused(f"refused: loading it would call getattr on {named or type(owner).__name__:.80}")
    return Name(f"{named}.{attribute}")


def _build(target: Any, state: Any) -> None:
    if isinstance(target, (Array, DType)):
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


def read(file: BinaryIO, storages: dict[str, Storage] | None = None, nested: ReadNested | None = None) -> Any:
    """The one pickle that begins at the file's position: plain containers, numbers, texts, `Tensor`s, arrays.

    Objects of all other kinds are `Shell`s.
    storages: gets every storage that the pickle refers to, by its key, those of skipped objects too.
    nested: reads a storage that lies in the pickle as a file of its own, as tensors do that Python's pickle wrote.
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
                    put(as_dict, key, value)
            stack.append({"TUPLE": tuple(items), "LIST": items, "DICT": as_dict}[name])
        elif name in ("TUPLE1", "TUPLE2", "TUPLE3"):
            size = int(name[-1])
            stack[-size:] = [tuple(stack[-size:])]
        elif name in ("SETITEM", "SETITEMS"):
            items = since_mark() if name == "SETITEMS" else [stack.pop(-2), stack.pop()]
            for key, value in zip(items[::2], items[1::2], strict=True):
                put(stack[-1], key, value)
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
        elif name in ("REDUCE", "NEWOBJ", "NEWOBJ_EX"):
            if name == "NEWOBJ_EX":
                stack.pop()  # the arguments that have names
            arguments = stack.pop()
            charge(arguments, position)
            stack.append(_call(stack.pop(), arguments, nested))
        elif name == "BUILD":
            state = stack.pop()
            charge(state, position)
            _build(stack[-1], state)
        elif name == "BINPERSID":
            storage = storage_of(stack.pop())
            if storages is not None and isinstance(storage, Storage):
                storages[storage.key] = storage
            stack.append(storage)
        elif name == "STOP":
            return _finished(stack.pop())
        elif name not in ("PROTO", "FRAME"):
            raise PickleRefused(
                f"refused: it holds the instruction {name}, which no file of tensors needs; "
                "save it with pickle's protocol 2, as torch.save does"
            )
    raise PickleRefused("it is cut off")


def _finished(value: Any) -> Any:
    """Arrays in place of those being built, and plain dictionaries in place of those of other classes."""

    def finished(item: Any) -> Any:
        if isinstance(item, Shell) and item.items:
            return item.items
        return item.value if isinstance(item, Array) else item

    value = finished(value)
    seen, todo = {id(value)}, [value]
    while todo:  # in place, and each container once: the memo may have put one under a million keys, or into itself
        container = todo.pop()
        if not isinstance(container, dict):
            continue
        for key, item in container.items():
            container[key] = item = finished(item)
            if isinstance(item, dict) and id(item) not in seen:
                seen.add(id(item))
                todo.append(item)
    return value
