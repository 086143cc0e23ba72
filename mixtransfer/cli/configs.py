"""``configs``: list the configs that come with the package."""

from __future__ import annotations

import argparse

from mixtransfer.errors import UserError

__all__ = ["parser", "run"]


def parser() -> argparse.ArgumentParser:
    """Return the options of ``configs``."""
    options = argparse.ArgumentParser(
        prog="mixtransfer configs",
        description="List the configs that come with the package. Every command takes them by these names.",
    )
    options.add_argument(
        "word", nargs="?", default="", metavar="WORD", help="list those that have this word in their line only"
    )
    options.add_argument("--paths", action="store_true", help="print the files, to copy or to build upon in _base_")
    return options


def run(args: argparse.Namespace) -> int:
    """Print the table, or the paths."""
    from mixtransfer.engine.recipes import find_config, list_recipes

    recipes = list_recipes(args.word)
    if not recipes:
        raise UserError(f"no config has {args.word!r} in its line; 'mixtransfer configs' lists all")
    if args.paths:
        print("\n".join(str(find_config(recipe.name)) for recipe in recipes))
        return 0
    rows = [("config", "task", "network", "schedule", "published")]
    rows += [(recipe.name, recipe.task, recipe.arch, recipe.schedule, recipe.published) for recipe in recipes]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    print("\npublished: what the papers print; mixtransfer has reproduced none of it yet")
    return 0
