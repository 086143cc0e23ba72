"""Making the indexes from which files are recognized: ``python -m mixtransfer.checkpoints.index``."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

import torch

from mixtransfer.backbones import FAMILIES, Backbone
from mixtransfer.checkpoints.fit import HEAD
from mixtransfer.checkpoints.recognize import ANY, INDEX, signature
from mixtransfer.checkpoints.rename import OURS, rename
from mixtransfer.checkpoints.select import matches
from mixtransfer.checkpoints.timm_names import TIMM_INDEX, digest
from mixtransfer.checkpoints.whole_files import replace_whole

__all__ = ["make_index", "make_timm_index"]


def make_index(families: Sequence[type[Backbone]] = FAMILIES, archs: Sequence[str] | None = None) -> dict[str, Any]:
    """Return the signatures of all networks, or of ``archs``, from builds without memory."""
    lines: dict[str, int] = {}
    found = {family.family: _family(family, archs or list(family.archs), lines) for family in families}
    return {"families": found, "lines": list(lines)}


def make_timm_index(names: Sequence[str] | None = None) -> dict[str, list[str]]:
    """Return the networks of the installed timm, or ``names`` of them, by the digest of their entries."""
    import timm

    found: dict[str, list[str]] = {}
    for name in names or timm.list_models():
        with torch.device("meta"):
            state = timm.create_model(name).state_dict()
        found.setdefault(digest({key: tuple(value.shape) for key, value in state.items()}), []).append(name)
    return found


def _family(family: type[Backbone], chosen: Sequence[str], lines: dict[str, int]) -> dict[str, Any]:
    names = [OURS, *family.formats()]
    formats: dict[str, dict] = {
        name: {"derived": list(family.formats()[name].derived) if name != OURS else [], "groups": [], "optional": []}
        for name in names
    }
    archs: dict[str, dict] = {}
    for arch in chosen:
        with torch.device("meta"):
            net = family(arch=arch, with_embedding=True)
            state = {**net.state_dict(), HEAD[0]: torch.empty(1, net.embed_channels), HEAD[1]: torch.empty(1)}
        archs[arch] = {"network": re.sub(r", img_size=\d+", "", repr(family.archs[arch]))}
        for name in names:
            archs[arch][name] = _add(family, state, name, arch, formats[name], lines)
    for arch in archs.values():  # groups that later networks brought
        for name in names:
            arch[name] += [-1] * (len(formats[name]["groups"]) - len(arch[name]))
    for name in family.formats():
        alike = (formats[name][part] == formats[OURS][part] for part in ("groups", "optional"))
        if all(alike) and all(arch[name] == arch[OURS] for arch in archs.values()):
            formats[name] = {"derived": formats[name]["derived"], "like": OURS}
            for arch in archs.values():
                del arch[name]
    return {"formats": formats, "archs": archs}


def _add(family: type[Backbone], state, name: str, arch: str, format_: dict, lines: dict[str, int]) -> list[int]:
    def under_name(entries):
        return signature({key: value.shape for key, value in rename(entries, arch, OURS, name).state.items()})

    optional = (*family.dense_only, *family.embed_only, *map(re.escape, HEAD))
    heads = under_name({key: state[key] for key in HEAD})
    loose = under_name({key: value for key, value in state.items() if matches(optional, key)})
    found = under_name(state)
    for group in found:
        if group not in format_["groups"]:
            format_["groups"].append(group)
            format_["optional"] += [group] if group in loose else []
    texts = [ANY if group in heads else found.get(group) for group in format_["groups"]]
    return [-1 if text is None else lines.setdefault(text, len(lines)) for text in texts]


def main() -> None:
    """Write the indexes."""
    text = json.dumps(make_index(), separators=(",", ":"))
    # A line for each family, format and network keeps changes readable.
    text = re.sub(r'("(?:\w+)":\{"(?:formats|network)")', r"\n\1", text) + "\n"
    with replace_whole(INDEX) as partial:
        partial.write_text(text, encoding="utf-8")
    lines = (f"{json.dumps(key)}: {json.dumps(names)}" for key, names in sorted(make_timm_index().items()))
    with replace_whole(TIMM_INDEX) as partial:
        partial.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
