"""Messages in the page that explains them are those of the code, word for word."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs/faq.md"


def pattern(node: ast.AST) -> str | None:
    """Return a text of the source with … in the place of each value; None for what is no text."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(part.value if isinstance(part, ast.Constant) else "…" for part in node.values)
    return None


@pytest.fixture(scope="module")
def texts() -> str:
    files = sorted((ROOT / "mixtransfer").rglob("*.py"))
    nodes = (node for file in files for node in ast.walk(ast.parse(file.read_text("utf-8"))))
    return "\n".join(text for text in map(pattern, nodes) if text)


def messages() -> list[str]:
    return re.findall(r"^\| `([^`]+)` \|", PAGE.read_text("utf-8"), re.MULTILINE)


def test_every_message_is_in_the_code(texts):
    assert len(messages()) > 50
    assert [message for message in messages() if message not in texts] == []


def test_a_message_of_other_words_is_found(texts):
    assert "…: holds a …, not named weights" in texts
    assert "…: holds a …, not named tensors" not in texts
