"""Which calls in a pickle only make an object beside the weights: a path, a date, an enum, a settings object.

Nothing is ever called, whatever the answer.  It decides between reading over the object and refusing the file, so
that a file which was made to run a command is named as that.
"""

from __future__ import annotations

import re
import sys

# Python 2's names of modules are in old files.
_STANDARD = sys.stdlib_module_names | {"__builtin__", "commands", "copy_reg", "cPickle", "exceptions", "popen2"}
_PLAIN = ["bool", "bytearray", "bytes", "complex", "dict", "float", "frozenset", "int", "list", "object", "range"]
_PLAIN += ["set", "slice", "str", "tuple", "xrange"]

# Of the standard library only these: its functions and some of its classes do things.
_HARMLESS = {f"{module}.{name}" for module in ("builtins", "__builtin__") for name in _PLAIN}
_HARMLESS |= {f"datetime.{name}" for name in ("date", "datetime", "time", "timedelta", "timezone")}
_HARMLESS |= {
    f"pathlib{module}.{name}"
    for module in ("", "._local", "._abc")  # where the classes are differs with Python's version
    for name in ("Path", "PosixPath", "PurePath", "PurePosixPath", "PureWindowsPath", "WindowsPath")
}
_HARMLESS |= {f"ipaddress.IPv{n}{kind}" for n in (4, 6) for kind in ("Address", "Network", "Interface")}
_HARMLESS |= {
    "argparse.Namespace",
    "array._array_reconstructor",
    "array.array",
    "collections.ChainMap",
    "collections.Counter",
    "collections.UserDict",
    "collections.UserList",
    "collections.deque",
    "copy_reg._reconstructor",
    "copyreg._reconstructor",
    "copyreg.__newobj__",
    "decimal.Decimal",
    "enum.Enum",
    "fractions.Fraction",
    "functools.partial",
    "io.BytesIO",
    "_io.BytesIO",
    "logging.getLogger",
    "os.stat_result",
    "random.Random",
    "re._compile",
    "time.struct_time",
    "types.MappingProxyType",
    "types.SimpleNamespace",
    "uuid.UUID",
    "zoneinfo.ZoneInfo",
    "zoneinfo.ZoneInfo._unpickle",
    # Functions of other libraries that only rebuild what was saved; classes are told by their names, below.
    "dateutil.tz.tz.tzlocal",
    "dateutil.tz.tz.tzutc",
    "numpy.ma.core._mareconstruct",
    "pandas.core.indexes.base._new_Index",
    "pytz._p",
    "torch.device",
    "torch.serialization._get_layout",
    *(f"numpy.random._pickle.__{kind}_ctor" for kind in ("bit_generator", "generator", "randomstate")),
}

# The last part of a name: a class as PEP 8 has it, or a function that rebuilds (`_unpickle_timestamp`).
_CLASS = re.compile(r"_*[A-Z]\w*")
_REBUILDS = re.compile(r"_+(pyx_)?(unpickle|rebuild|reconstruct)\w*")


def is_harmless(name: str) -> bool:
    """Whether calling `name`, e.g. `pathlib.PosixPath`, only makes an object.

    Of other libraries, and of the training program itself, that is every class.  Their functions are not taken for
    harmless: `numpy.load` reads a file.
    """
    if name in _HARMLESS:
        return True
    module, _, last = name.rpartition(".")
    top = module.partition(".")[0]
    if top in ("builtins", "__builtin__", "exceptions"):  # the classes with capitals are the exceptions
        return bool(_CLASS.fullmatch(last))
    if not top or top in _STANDARD:
        return False
    return bool(_CLASS.fullmatch(last) or _REBUILDS.fullmatch(last))
