"""The names of classes are data: what they may be, so that they can be printed, compared and written to files."""

import unicodedata
from collections.abc import Iterable

from cnnjax.ops.errors import InputError

# Of Unicode: control characters, among them those that command terminals, and line and paragraph separators.
_UNPRINTED = ("Cc", "Zl", "Zp")
_REORDERING = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")  # show a name as another


def check_class_names(where: str, names: Iterable[str]) -> None:
    """Refuses names that can't be printed as they are, and two that look alike.

    Args:
      where: the data set, for errors.
      names: of its classes.

    Raises:
      InputError: a name is empty, or holds a control character or one that reorders text; or two names differ only in
        how Unicode composes their characters ("ä" is one character or two).
    """
    spelt: dict[str, str] = {}
    for name in names:
        if not isinstance(name, str) or not name.strip():
            raise InputError(f"{where}: the name of a class is {name!r}, allowed: text that is not empty")
        if any(unicodedata.category(c) in _UNPRINTED or c in _REORDERING for c in name):
            raise InputError(f"{where}: the class {name!a} has a character that can't be printed in its name")
        other = spelt.setdefault(composed(name), name)
        if other != name:
            raise InputError(
                f"{where}: the classes {other!a} and {name!a} look alike (Unicode writes one of their characters in two"
                " ways); rename or merge them"
            )


def composed(name: str) -> str:
    """A name as Unicode composes it (NFC): names that look alike, as macOS and Linux write them, become equal."""
    return unicodedata.normalize("NFC", name)
