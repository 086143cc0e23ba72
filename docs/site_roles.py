"""Docstrings as the site shows them: Sphinx's roles become code."""

from __future__ import annotations

import re
from typing import Any

import griffe

__all__ = ["PlainRoles"]

ROLE = re.compile(r":(?:class|func|mod|meth|attr|data|obj|exc):`~?([^`]+)`")


class PlainRoles(griffe.Extension):
    """``:class:`~a.b.C``` becomes ```C```, a role without a tilde the whole name."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Rewrite the docstring of ``obj``, if it has one."""
        if obj.docstring:
            obj.docstring.value = ROLE.sub(_shown, obj.docstring.value)


def _shown(role: re.Match[str]) -> str:
    name = role[1].rpartition(".")[2] if "~" in role[0] else role[1]
    return f"`{name}`"
