"""Which of the dictionaries in a checkpoint holds the network's weights, and what its keys are without wrappers.

Training programs store a state dict in a dictionary of their own, under a name of their choice, and often a second
set of weights, an average over the steps, beside it.  Wrappers of the network prefix every key.  The names of keys
decide: the set of which the tables of kpjax.convert.tables know most is taken.  Names of wrappers count only where
the tables know nothing.
"""

from __future__ import annotations

import collections
import dataclasses
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from kpjax.convert.inert_values import Shell
from kpjax.convert.rules import ImportMismatch
from kpjax.convert.tables import is_known

_WRAPPERS = ("state_dict", "model", "model_state_dict", "model_state", "net", "network", "weights", "params", "module")
_PREFIXES = ("module", "model", "net", "network", "detector")
# torch.compile, FSDP and activation checkpoints put their prefix before any part of the network.
_INSIDE = re.compile(r"(?:^|(?<=\.))(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
_MODULE = re.compile(r"(?<=\.)module\.")  # a part that was wrapped for several GPUs
_AVERAGE = re.compile(r"(^|[._])(ema|swa|avg|averaged?|teacher)([._]|$)", re.IGNORECASE)

_DEEPEST = 6  # dictionaries within dictionaries, and parts of a prefix
_MOST_PLACES = 8  # of an optimizer's dictionaries there are thousands, each with two arrays
_SAMPLE = 16  # keys of a set that are compared with the tables
_LEAST = 0.25  # the share of keys that a prefix has to be before, and that a table has to know
_ALIKE = 0.9  # sets that are known this well, compared with the best, are taken for further sets of the same weights
_SHOWN = 3  # entries, where something is listed
_LONGEST = 60  # letters of a name, where something is listed


@dataclasses.dataclass(frozen=True)
class Weights:
    """The state dict of a checkpoint, and what lies beside it.

    state_dict: {key without wrappers: array}.  taken: where it was, e.g. "model.state_dict"; "" for the file's
    own dictionary.  left_out: the names of everything else.  other_sets: those of them that are further sets of weights
    of the same network, such as a moving average.  average: whether the state dict is one by its name, as is taken
    where there are no other weights.
    """

    state_dict: dict[str, Any]
    taken: str = ""
    left_out: tuple[str, ...] = ()
    other_sets: tuple[str, ...] = ()
    average: bool = False


@dataclasses.dataclass(frozen=True, eq=False)
class _Place:
    """A dictionary with arrays in it.

    path: the keys that lead to it.  levels: the dictionaries on the way, itself the last.  keys: its arrays' keys
    without what wrappers put inside -> the key in the file.  flat: keys of averages in mmcv's way.
    """

    path: tuple[str, ...]
    levels: tuple[Mapping[Any, Any], ...]
    keys: dict[str, str]
    flat: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class _Set:
    """The keys of a place that begin with a prefix.  known: how many of them the tables know, about."""

    place: _Place
    prefix: str
    keys: tuple[str, ...]
    known: float

    def is_average(self) -> bool:
        return bool(_AVERAGE.search(".".join((*self.place.path, self.prefix))))


def unwrap(checkpoint: Mapping[str, Any], knows: Callable[[str], bool] = is_known) -> dict[str, Any]:
    """The state dict inside a checkpoint, its keys without wrappers.  Raises ImportMismatch where there is none."""
    return find_weights(checkpoint, knows).state_dict


def find_weights(checkpoint: Mapping[str, Any], knows: Callable[[str], bool] = is_known) -> Weights:
    """The network's weights in a checkpoint: {key: array}, or dictionaries around that, six deep at most.

    An array is what has a shape.  Of several sets of the same weights the network's own is taken; an average only
    where it is the only one.
    knows: whether the table (or one of them) that the weights are for has a key.
    Raises ImportMismatch, which lists what there is, where there is no array.
    """
    places = list(_places(checkpoint))
    if not places:
        raise ImportMismatch(_no_weights(checkpoint))
    # The likeliest first, but of equal ones in the file's order.
    ranked = sorted(places, key=lambda place: (not _is_wrapped(place), -len(place.keys)))[:_MOST_PLACES]
    sets = [one for place in places if place in ranked for one in _sets(place, knows)]
    best = max(one.known for one in sets)
    if best:
        fitting = [one for one in sets if one.known >= _ALIKE * best]
    else:
        fitting = [one for place in ranked for one in [_unprefixed(place)]]
    chosen = next((one for one in fitting if not one.is_average()), fitting[0])
    alike = fitting if best else [one for one in sets if one.is_average()]
    return _weights(chosen, [one for one in alike if 2 * len(one.keys) >= len(chosen.keys)])


def _places(checkpoint: Any) -> Iterator[_Place]:
    """Every dictionary that holds an array, each once, from the outside in."""
    if not isinstance(checkpoint, Mapping):
        return
    seen = {id(checkpoint)}
    todo: collections.deque[tuple[tuple[str, ...], tuple[Mapping[Any, Any], ...]]] = collections.deque()
    todo.append(((), (checkpoint,)))
    while todo:
        path, levels = todo.popleft()
        found = []
        for key, value in levels[-1].items():
            if isinstance(key, str) and hasattr(value, "shape"):
                found.append(key)
            elif isinstance(value, Mapping) and id(value) not in seen and len(path) < _DEEPEST:
                seen.add(id(value))
                todo.append(((*path, str(key)), (*levels, value)))
        if found:
            flat = _flat_averages(found)
            averages = set(flat)
            yield _Place(path, levels, _cleaned([key for key in found if key not in averages]), flat)


def _cleaned(keys: Sequence[str]) -> dict[str, str]:
    """{key without the wrappers inside of it: key}; as they are where two would become one."""
    clean = {_MODULE.sub("", _INSIDE.sub("", key)): key for key in keys}
    return clean if len(clean) == len(keys) else {key: key for key in keys}


def _flat_averages(keys: Sequence[str]) -> tuple[str, ...]:
    """The keys of mmcv 1's averages: beside `backbone.conv1.weight` the buffer `ema_backbone_conv1_weight`."""
    candidates = [key for key in keys if key.rpartition(".")[2].startswith("ema_")]
    heads = {key.rpartition(".")[0] for key in candidates}
    if not 0 < len(heads) <= 4:
        return ()
    flattened = set()
    for head in heads:
        start = f"{head}." if head else ""
        flattened |= {start + "ema_" + key[len(start) :].replace(".", "_") for key in keys if key.startswith(start)}
    return tuple(key for key in candidates if key in flattened)


def _sets(place: _Place, knows: Callable[[str], bool]) -> Iterator[_Set]:
    """The place's arrays under each prefix that a good part of its keys has, the shortest prefix first."""
    most, todo = len(place.keys), collections.deque([("", tuple(place.keys))])
    while todo:
        prefix, keys = todo.popleft()
        sample = keys[:: max(1, len(keys) // _SAMPLE)]
        share = sum(knows(key[len(prefix) :]) for key in sample) / len(sample) if sample else 0.0
        yield _Set(place, prefix, keys, share * len(keys) if share >= _LEAST else 0.0)
        if prefix.count(".") >= _DEEPEST:
            continue
        under: dict[str, list[str]] = collections.defaultdict(list)
        for key in keys:
            part, dot, _ = key[len(prefix) :].partition(".")
            if dot:
                under[prefix + part + dot].append(key)
            if not prefix and key.startswith("ema_"):
                under["ema_"].append(key)
        todo.extend((start, tuple(members)) for start, members in under.items() if len(members) >= _LEAST * most)


def _unprefixed(place: _Place) -> _Set:
    """The whole place, less the prefixes of usual wrappers that all of its keys have."""
    prefix = ""
    while True:
        longer = next(
            (f"{prefix}{p}." for p in _PREFIXES if all(k.startswith(f"{prefix}{p}.") for k in place.keys)), ""
        )
        if not longer:
            return _Set(place, prefix, tuple(place.keys), 0.0)
        prefix = longer


def _is_wrapped(place: _Place) -> bool:
    return bool(place.path) and all(name in _WRAPPERS for name in place.path)


def _weights(chosen: _Set, further: Sequence[_Set]) -> Weights:
    place = chosen.place
    left_out: dict[str, None] = {}
    for depth, level in enumerate(place.levels[:-1]):
        names = (str(key) for key in level if str(key) != place.path[depth])
        left_out |= dict.fromkeys(".".join((*place.path[:depth], name)) for name in names)
    inside = ".".join(place.path)
    held = set(place.keys.values()) | set(place.flat)
    others = [str(key) for key in place.levels[-1] if key not in held]
    left_out |= dict.fromkeys(f"{inside}.{key}" if inside else key for key in others)
    taken = set(chosen.keys)
    groups: dict[str, list[str]] = collections.defaultdict(list)
    for key in place.keys:
        if key not in taken:
            groups[_group(key, chosen.prefix)].append(key)
    beside = {(keys[0] if len(keys) == 1 else f"{group}*"): group for group, keys in groups.items()}
    flat = "ema_*" if place.flat else ""
    left_out |= dict.fromkeys([*beside, *([flat] if flat else [])])
    other_sets: dict[str, None] = {flat: None} if flat else {}
    for one in further:
        if one.place is place:
            other_sets |= {name: None for name, group in beside.items() if one.prefix.startswith(group)}
        elif (name := _divergence(one.place.path, place.path)) in left_out:
            other_sets[name] = None
    where = ".".join((*place.path, *([f"{chosen.prefix}*"] if chosen.prefix else [])))
    values = place.levels[-1]
    state_dict = {key[len(chosen.prefix) :]: values[place.keys[key]] for key in chosen.keys}
    return Weights(state_dict, where, tuple(left_out), tuple(other_sets), chosen.is_average())


def _group(key: str, prefix: str) -> str:
    """The start of a key up to where it differs from the prefix: `ema_model.` for `ema_model.conv1.weight`."""
    start = ""
    while True:
        part, dot, _ = key[len(start) :].partition(".")
        start += part + dot
        if not dot or not prefix.startswith(start):
            return start


def _divergence(path: Sequence[str], other: Sequence[str]) -> str:
    """A path up to the first part that another one does not have."""
    same = next((i for i, (a, b) in enumerate(zip(path, other, strict=False)) if a != b), min(len(path), len(other)))
    return ".".join(path[: same + 1])


def contents(value: Any) -> str:
    """What a value is, in a word or two: the class of an object, the shape of an array."""
    if isinstance(value, Shell):
        return shown(value.name)
    shape = getattr(value, "shape", None)
    return f"{tuple(shape)}" if shape is not None else f"{type(value).__name__}"


def shown(name: str) -> str:
    """A file's name for something, fit for one line."""
    line = " ".join("".join(letter if letter.isprintable() else " " for letter in name[: 4 * _LONGEST]).split())
    return line[:_LONGEST] + ("..." if len(line) > _LONGEST else "")


def listed(entries: Mapping[Any, Any]) -> str:
    """The first arrays of a state dict with their shapes, or a dictionary's keys with what is under them."""
    some = [f"{shown(str(key))} {contents(value)}" for key, value in list(entries.items())[:_SHOWN]]
    return ", ".join(some) + (f" and {len(entries) - _SHOWN} more" if len(entries) > _SHOWN else "")


def _no_weights(checkpoint: Any) -> str:
    if not isinstance(checkpoint, Mapping) or not checkpoint:
        return "no state dict found: its dictionary is empty; save the network's state_dict()"
    some = [f"{str(key)!r:.{_LONGEST}} is a {contents(value)}" for key, value in list(checkpoint.items())[:_SHOWN]]
    more = f" and {len(checkpoint) - _SHOWN} more" if len(checkpoint) > _SHOWN else ""
    return f"not a state dict, and none is in it: {', '.join(some)}{more}; save the network's state_dict()"
