"""Which file is meant where a list spells a name otherwise than the disk does.

Lists written on another machine have backslashes for slashes, another case of letters, another Unicode normal form
(macOS takes accents apart), percent signs (of URLs) or spaces around a name.
"""

from __future__ import annotations

import difflib
import posixpath
import re
import unicodedata
import urllib.parse
from collections import Counter
from collections.abc import Container, Sequence

from kpjax.data import files

_LIKE = 0.85  # least likeness of a name that is suggested


class Spellings:
    """The files below a folder by their names without what spellings differ in.  Each folder in it is listed once.

    folder: absolute path or URL.
    """

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self._listed: dict[str, dict[str, list[str]]] = {}

    def fitting(self, name: str) -> list[str]:
        """The files, by paths relative to the folder, whose names differ from `name` in spelling alone."""
        return self._below("", plain(name))

    def meant(self, names: Sequence[str], missing: Sequence[str]) -> dict[str, str]:
        """The one file that each of the `missing` names can only mean; names of which that is not certain are left out.

        names: all that the list has.  A file that another of them means too is not certain.
        """
        fits = {name: self.fitting(name) for name in dict.fromkeys(missing)}
        taken = set(names) - set(fits)
        alone = {name: found[0] for name, found in fits.items() if len(found) == 1 and found[0] not in taken}
        counts = Counter(alone.values())
        return {name: file for name, file in alone.items() if counts[file] == 1}

    def like(self, name: str, taken: Container[str] = ()) -> list[str]:
        """Up to three files that may be meant by `name`: spelt alike, of another suffix, in another place, or close.

        taken: files that other names mean.
        """
        found = self.fitting(name)
        parent, base = posixpath.split(plain(name))
        there = self._of(parent)
        stem = posixpath.splitext(base)[0]
        found += [file for key, same in there.items() if posixpath.splitext(key)[0] == stem for file in same]
        parts = plain(name).split("/")
        for cut in range(1, len(parts)):  # a folder that the list names too
            found += self._below("", "/".join(parts[cut:]))
        if not found:
            # Numbered files are all alike: another number is another file.
            same_digits = [key for key in there if re.findall(r"\d+", key) == re.findall(r"\d+", base)]
            close = difflib.get_close_matches(base, same_digits, n=3, cutoff=_LIKE)
            found = [file for key in close for file in there[key]]
        return [file for file in dict.fromkeys(found) if file not in taken][:3]

    def _below(self, place: str, rest: str) -> list[str]:
        names, parts = self._names(place), rest.split("/")
        found = []
        for n in range(1, len(parts) + 1):  # a name on the disk may hold a backslash itself
            for name in names.get("/".join(parts[:n]), ()):
                path = posixpath.join(place, name)
                found += [path] if n == len(parts) else self._below(path, "/".join(parts[n:]))
        return found

    def _of(self, parent: str) -> dict[str, list[str]]:
        """What lies in the folder that `parent` means, names without differences -> paths."""
        places = self._below("", parent) if parent else [""]
        found: dict[str, list[str]] = {}
        for place in places:
            for key, names in self._names(place).items():
                found.setdefault(key, []).extend(posixpath.join(place, name) for name in names)
        return found

    def _names(self, place: str) -> dict[str, list[str]]:
        if place not in self._listed:
            listed: dict[str, list[str]] = {}
            try:
                there = files.names_in(files.join(self._folder, place) if place else self._folder)
            except OSError:  # a file, or a folder that is not there
                there = []
            for name in sorted(there):
                listed.setdefault(plain(name), []).append(name)
            self._listed[place] = listed
        return self._listed[place]


def plain(name: str) -> str:
    """A name without what spellings differ in."""
    text = urllib.parse.unquote(name, errors="surrogateescape")
    text = unicodedata.normalize("NFC", unicodedata.normalize("NFC", text).casefold()).replace("\\", "/")
    return "/".join(part.strip() for part in text.split("/"))


def hint(found: Sequence[str]) -> str:
    """The end of a message: "; did you mean a.jpg or b.jpg?"; "" where there is nothing to suggest."""
    return f"; did you mean {' or '.join(found)}?" if found else ""
