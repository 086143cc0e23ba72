"""Converting checkpoint files: selected, named, ours, fitted, theirs, proven, written, reported.

Each stage takes the value of the one before. The entries are renamed to ours once and to the target's names once; the
object that was proven is the one that is written.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mixtransfer
from mixtransfer.backbones import Backbone, backbone_class
from mixtransfer.checkpoints.fit import HEAD, fill, fit, shorten
from mixtransfer.checkpoints.headers import INDEX, read_header, whole_of
from mixtransfer.checkpoints.load import recognize_format
from mixtransfer.checkpoints.mapped_memory import ReleasePages
from mixtransfer.checkpoints.read import read_checkpoint
from mixtransfer.checkpoints.recognize import identify
from mixtransfer.checkpoints.rename import OURS, Renamed, absent_from, key_map, rename
from mixtransfer.checkpoints.select import Selection, matches, select_weights
from mixtransfer.checkpoints.verify import Candidate, build_without_values, file_names, nonfinite, prove
from mixtransfer.checkpoints.whole_files import file_hash, write_json
from mixtransfer.checkpoints.write import SUFFIXES, write_weights
from mixtransfer.errors import UserError, visible

__all__ = ["ConvertOptions", "Report", "convert_file", "convert_many", "plan"]


MADE_BY = f"mixtransfer {mixtransfer.__version__}"
#: Suffixes of the files that are checkpoints in a folder.
CHECKPOINTS = (".pth", ".pt", ".pth.tar", ".bin", ".ckpt", ".safetensors")


@dataclass(frozen=True)
class ConvertOptions:
    """The settings of a conversion.

    Attributes:
        arch: the architecture, or None to recognize it.
        source: the format of the names, or ``"auto"``.
        target: the format to write.
        average: take the moving average (True), the raw weights (False), or raw before average (None).
        trust: let the file run code.
        force: replace a destination that exists.
        verify: prove the result before it is written.
        allow_nonfinite: accept NaN and infinite weights.
        drop: regular expressions of further entries to leave behind.
        container: the key that holds the entries of a ``.pth``; None takes the target's usual one.
        hashed: put the first eight digits of the content's SHA-256 into the name.
        img_size, window, in_channels: what the network is built for; tables and the input layer are resized to it.
    """

    arch: str | None = None
    source: str = "auto"
    target: str = OURS
    average: bool | None = None
    trust: bool = False
    force: bool = False
    verify: bool = True
    allow_nonfinite: bool = False
    drop: tuple[str, ...] = ()
    container: str | None = None
    hashed: bool = False
    img_size: int | tuple[int, int] | None = None
    window: int | None = None
    in_channels: int = 3

    def network(self) -> dict[str, Any]:
        """Return the backbone's keyword arguments that differ from the published network."""
        given = {"img_size": self.img_size, "window": self.window}
        kept = {key: value for key, value in given.items() if value is not None}
        return kept | ({"in_channels": self.in_channels} if self.in_channels != 3 else {})


@dataclass(frozen=True)
class Named:
    """Selected entries of which it is known whose they are.

    Attributes:
        file: the file they come from, for messages.
        selected: the entries, under their own names.
        arch: the architecture.
        format: the format of the names.
    """

    file: str
    selected: Selection
    arch: str
    format: str


@dataclass(frozen=True)
class Proven:
    """A conversion that may be written.

    Attributes:
        named: the entries that it began with.
        candidate: the conversion that was proven.
        nonfinite: entries of ours that hold NaN or infinite values.
        proof: a sentence for each thing that was proven.
    """

    named: Named
    candidate: Candidate
    nonfinite: list[str]
    proof: dict[str, str]


@dataclass(frozen=True)
class Report:
    """The record of a conversion: read, done, proven, written; also the content of the JSON file beside the result."""

    source: dict[str, Any]
    arch: str
    formats: tuple[str, str]
    network: dict[str, Any]
    parameters: int
    counts: dict[str, int]
    dropped: dict[str, list[str]]
    resized: dict[str, tuple[tuple[int, ...], tuple[int, ...]]]
    new: list[str]
    filled: list[str]
    left_out: list[str]
    nonfinite: list[str]
    proof: dict[str, Any]
    file: dict[str, Any]
    made_by: str = MADE_BY

    def __str__(self) -> str:
        """Return a table of two columns."""
        sizes = [f"{key} {_size(old)} -> {_size(new)}" for key, (old, new) in self.resized.items()]
        rows = [
            ("source", f"{self.source['file']} ({self.source['kind']}, {self.source['bytes'] / 2**20:.1f} MiB)"),
            ("weights", self.source["weights"]),
            ("network", " ".join([self.arch, *(f"{key}={value}" for key, value in self.network.items())])),
            ("names", " -> ".join(self.formats)),
            ("entries", ", ".join(f"{count} {what}" for what, count in self.counts.items() if count)),
            ("parameters", f"{self.parameters:,}"),
            *((f"dropped, {rule}", f"{len(keys)}: {shorten(keys, 4)}") for rule, keys in self.dropped.items()),
            *([("resized", shorten(sizes, 4))] if sizes else []),
            *([("absent", shorten(self.new, 4))] if self.new else []),
            *([("filled", f"{shorten(self.filled, 4)} (the network's initial value)")] if self.filled else []),
            *([("no place there", shorten(self.left_out, 4))] if self.left_out else []),
            *([("not finite", shorten(self.nonfinite, 4))] if self.nonfinite else []),
            *self.proof.items(),
            ("written", f"{self.file['file']} (sha256 {self.file['sha256'][:12]}…)"),
        ]
        rows = [(visible(name), visible(text)) for name, text in rows]
        width = max(len(name) for name, _ in rows)
        return "\n".join(f"{name:<{width}}  {text}" for name, text in rows)


def convert_file(source: str | Path, target: str | Path, options: ConvertOptions | None = None) -> Report:
    """Convert a checkpoint file, prove the result, and write it and a JSON report beside it.

    Args:
        source: a ``.safetensors`` or ``torch.save`` file: of a backbone, a classifier, a detector or a segmentor.
        target: the file to write, ``.safetensors``, ``.pth`` or ``.pt``; the report takes the suffix ``.json``.
        options: see :class:`ConvertOptions`.

    Raises:
        UserError: anything about the file, the options or the proof that is not as it should be; nothing is written.
    """
    options = options or ConvertOptions()
    source, target = Path(source), Path(target)
    _check_target(target, options)
    content = read_checkpoint(source, options.trust, mapped=True)
    with ReleasePages(source, content) as pages:
        selected = select_weights(content, str(source), options.average, options.drop)
        named = _name(selected, str(source), options)
        ours = rename(selected.weights, named.arch, named.format)
        proven = _prove(_fit(ours, named, options), named, options)
        # Before anything is written, as the target may be the source.
        origin = _origin(source, selected)
        written = _write(proven, target, options, pages.release)
    report = _report(proven, origin, written, options)
    write_json(target.with_name(written["file"]).with_suffix(".json"), dataclasses.asdict(report))
    return report


def convert_many(
    sources: Sequence[Path], folder: Path, options: ConvertOptions, suffix: str = ".safetensors"
) -> Iterator[tuple[Path, Report | UserError]]:
    """Convert files into a folder one after another, going on after a bad one; yield each with its report or error.

    Args:
        sources: files, and folders whose checkpoints are all taken; a folder's subfolders are kept.
        folder: where results go, under their names with ``suffix``.
        options: see :class:`ConvertOptions`.
        suffix: of the results.

    Raises:
        UserError: before anything is read, when two results would have one name or there is nothing to convert.
    """
    planned: dict[Path, Path] = {}
    for source, target in plan(sources, folder, suffix):
        if target in planned:
            raise UserError(f"{source} and {planned[target]} would both become {target}; convert them separately")
        planned[target] = source
    for target, source in planned.items():
        try:
            yield source, convert_file(source, target, options)
        except UserError as error:
            yield source, error


def plan(sources: Sequence[Path], folder: Path, suffix: str) -> list[tuple[Path, Path]]:
    """Return (source, result) for files and for the checkpoints inside folders; see :func:`convert_many`."""
    if folder.is_file():
        raise UserError(f"{folder} is a file; several checkpoints go into a folder")
    found = []
    for source in sources:
        inside = [source] if not source.is_dir() else [p for p in sorted(source.rglob("*")) if _is_whole(p)]
        root = source if source.is_dir() else source.parent
        for path in inside:
            name = re.sub(r"(\.pth|\.safetensors\.index)?\.[a-z]+$", suffix, path.name)
            found.append((path, folder / path.relative_to(root).with_name(name)))
    if not found:
        raise UserError(f"{', '.join(map(str, sources))}: no {', '.join(CHECKPOINTS)} files there")
    return found


def _is_whole(path: Path) -> bool:
    """Tell whether a file has the name of a checkpoint, or of an index, and is no part beside its index."""
    index = whole_of(path)
    return path.name.endswith((*CHECKPOINTS, INDEX)) and not (index and index.is_file())


def _check_target(target: Path, options: ConvertOptions) -> None:
    if target.suffix not in SUFFIXES:
        raise UserError(f"{target}: give a name that ends in {', '.join(SUFFIXES)}")
    # A name with the content's hash cannot hold anything else.
    for path in () if options.force or options.hashed else (target, target.with_suffix(".json")):
        if path.exists():
            raise UserError(f"{path} exists; pass --force to replace it, or give another name")


def _name(selected: Selection, file: str, options: ConvertOptions) -> Named:
    """Recognize the architecture and the format of the names, as far as the options do not say them."""
    arch, source = options.arch, options.source
    if arch is None:
        match = identify(selected.weights, file)
        arch, source = match.arch, match.format if source == "auto" else source
    family = backbone_class(arch)
    for chosen in (options.source, options.target):
        if chosen not in ("auto", OURS):
            key_map(family, chosen)
    if source == "auto":
        with build_without_values():
            source = recognize_format(family(arch=arch, with_embedding=True), selected.weights)
    return Named(file, selected, arch, source)


def _fit(ours: Renamed, named: Named, options: ConvertOptions) -> Candidate:
    """Build the network that the entries belong to, fit them to it, and name them as the target does."""
    heads = [key for key in HEAD if key in ours.state]
    if len(heads) == 1:
        raise UserError(f"{named.file}: holds half a classifier head: {heads[0]} alone")
    classes = (*ours.state[HEAD[0]].shape, 0)[0] if heads else None
    net = _network(ours, named, options)
    fitted = fill(fit(ours, net, named.format, named.file, classes), net)
    theirs = rename(fitted.state, named.arch, OURS, options.target)
    return Candidate(
        file=named.file,
        weights=named.selected.weights,
        fitted=fitted,
        theirs=theirs,
        target=options.target,
        net=net,
        network=options.network(),
    )


def _network(ours: Renamed, named: Named, options: ConvertOptions) -> Backbone:
    arch, keys, given = named.arch, ours.state, options.network()
    family = backbone_class(arch)
    with build_without_values():
        embedding = {
            key for key in family(arch=arch, with_embedding=True).state_dict() if matches(family.embed_only, key)
        }
    # Dense files may hold a part of what a classifier needs; it is left behind.
    absent = absent_from(family, named.format)
    embeds = HEAD[0] in keys or all(key in keys for key in embedding if not matches(absent, key))

    lacking = given.keys() - family.own_options() - {"in_channels"}
    if lacking:
        raise UserError(f"{arch} has no option {', '.join(sorted(lacking))}: nothing in it depends on that")
    dense = not embeds or any(matches(family.dense_only, key) for key in keys)
    outputs = {} if dense or not family.dense_only else {"out_indices": ()}
    try:
        with build_without_values():
            return family(arch=arch, with_embedding=embeds, **outputs, **given)
    except TypeError:
        values = ", ".join(f"{key}={value}" for key, value in given.items())
        raise UserError(f"{arch} does not take {values}; see its class for their form") from None


def _prove(candidate: Candidate, named: Named, options: ConvertOptions) -> Proven:
    """Refuse values that are not finite, and prove the conversion, as far as the options ask for it."""
    bad = nonfinite(candidate.fitted.state)
    if bad and not options.allow_nonfinite:
        raise UserError(
            f"{named.file}: {len(bad)} entries hold NaN or infinite values: {shorten(bad)}; the training broke down, or"
            " pass --allow-nonfinite"
        )
    proof = prove(candidate, options.allow_nonfinite) if options.verify else {"proof": "none (--no-verify)"}
    return Proven(named, candidate, bad, proof)


def _write(proven: Proven, target: Path, options: ConvertOptions, after: Callable[[], None]) -> dict[str, Any]:
    """Write the entries, and return the name, size and hash of the file."""
    state = file_names(proven.candidate.theirs.state, options.target)
    container = options.container
    if container is None:
        container = "model" if options.target == "official" else "state_dict"
    note = {"format": "pt", "arch": proven.named.arch, "names": options.target, "made_by": MADE_BY}
    staged = target.with_name(f".staged.{target.name}") if options.hashed else target
    try:
        write_weights(staged, state, note, container, after)
        digest = file_hash(staged)
        if options.hashed:
            target = staged.replace(target.with_name(f"{target.stem}-{digest[:8]}{target.suffix}"))
    finally:
        if options.hashed:
            staged.unlink(missing_ok=True)
    return {"file": target.name, "bytes": target.stat().st_size, "sha256": digest, "entries": len(state)}


def _origin(source: Path, selected: Selection) -> dict[str, Any]:
    header = read_header(source)
    return {
        "file": source.name,
        "bytes": header.size,
        "sha256": file_hash(source),
        **({"parts": {part.name: file_hash(part) for part in header.parts}} if header.parts else {}),
        "kind": header.kind,
        "weights": _where(selected),
    }


def _report(proven: Proven, origin: dict[str, Any], written: dict[str, Any], options: ConvertOptions) -> Report:
    named, fitted, theirs = proven.named, proven.candidate.fitted, proven.candidate.theirs
    selected = named.selected
    return Report(
        source=origin,
        arch=named.arch,
        formats=(named.format, options.target),
        network=options.network(),
        parameters=sum(value.numel() for value in fitted.state.values() if value.is_floating_point()),
        counts={
            "read": len(selected.weights) + sum(map(len, selected.dropped.values())),
            "converted": len(theirs.state),
            "resized": len(fitted.resized),
            "dropped": sum(map(len, (*selected.dropped.values(), *fitted.dropped.values()))),
        },
        dropped={**selected.dropped, **fitted.dropped},
        resized=fitted.resized,
        new=list(fitted.new),
        filled=list(fitted.filled),
        left_out=list(theirs.left_out),
        nonfinite=proven.nonfinite,
        proof=proven.proof,
        file=written,
    )


def _where(selected: Selection) -> str:
    place = ".".join(selected.container) or "top level"
    kind = "moving average" if selected.average else "raw weights"
    prefix = f", under {selected.prefix}" if selected.prefix else ""
    other = f"; {selected.other} holds the {'raw weights' if selected.average else 'moving average'}, not taken"
    return f"{kind} in {place}{prefix}{other if selected.other else ''}"


def _size(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))
