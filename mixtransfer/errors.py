"""The one exception that a user's mistake raises, how names are suggested, and how foreign text is shown."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def visible(text: object, keep: str = "") -> str:
    r"""Return ``text`` with everything that a terminal would act on, or not show, as its escape.

    Those are control characters (so also line ends), characters that turn the direction of writing, lone surrogates,
    and whatever else :meth:`str.isprintable` denies: ``"\x1b[2J"`` becomes the six characters ``\x1b[2J``.

    Args:
        text: what came from a file, a name, a path or a library.
        keep: characters that stay as they are, e.g. ``"\n\t"`` in a table.
    """
    text = str(text)
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in keep else c.encode("unicode_escape").decode() for c in text)


class UserError(ValueError):
    """Something the user gave is wrong; the message is one line that names it and the remedy.

    Command lines print the message and exit with status 2; anything else that escapes is a bug. Names and values in
    the message may come from anywhere: it is shown as :func:`visible` shows it.
    """

    def __str__(self) -> str:
        return visible(super().__str__())


def unknown_name(kind: str, name: str, known: Iterable[str]) -> UserError:
    """Return the error for an unknown ``name``, listing the names that come near it, else all of them."""
    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=5, cutoff=0.5)
    hint = f"did you mean {', '.join(near)}?" if near else f"known: {', '.join(known)}"
    return UserError(f"unknown {kind} {name!r}; {hint}")
