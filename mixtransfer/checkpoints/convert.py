"""Converting checkpoint files: read, account for every entry, prove, write, report."""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

import mixtransfer
from mixtransfer.backbones import Backbone, backbone_class
from mixtransfer.checkpoints.fit import HEAD, FittedState, account_for, shorten
from mixtransfer.checkpoints.headers import read_header
from mixtransfer.checkpoints.load import recognize_format
from mixtransfer.checkpoints.mapped_memory import ReleasePages
from mixtransfer.checkpoints.read import read_checkpoint
from mixtransfer.checkpoints.recognize import identify
from mixtransfer.checkpoints.rename import OURS, convert
from mixtransfer.checkpoints.select import Selection, select_weights
from mixtransfer.checkpoints.verify import (
    TOLERANCE,
    build_without_values,
    compare,
    differing,
    file_names,
    fixed_images,
    nonfinite,
    run,
)
from mixtransfer.checkpoints.write import SUFFIXES, file_hash, json_writer, replace_whole, write_weights
from mixtransfer.errors import UserError, unknown_name, visible

__all__ = ["ConvertOptions", "Report", "convert_file", "convert_many", "plan"]


#: What checkpoints in a folder are called.
CHECKPOINTS = (".pth", ".pt", ".pth.tar", ".bin", ".ckpt", ".safetensors")


@dataclass(frozen=True)
class ConvertOptions:
    """How files are converted.

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


@dataclass
class Report:
    """What a conversion read, did, proved and wrote; also the content of the JSON file beside the result."""

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
    file: dict[str, Any] = field(default_factory=dict)
    made_by: str = f"mixtransfer {mixtransfer.__version__}"

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
        report, state = _convert(content, source, options)
        _write(report, state, target, options, pages.release)
    return report


def _convert(content: Mapping[str, Any], source: Path, options: ConvertOptions) -> tuple[Report, dict[str, Tensor]]:
    """Return the report, all but the file, and the entries to write."""
    selected = select_weights(content, str(source), options.average, options.drop)
    arch, names = _identify(selected, str(source), options)
    net, head = _network(selected.weights, arch, names, options, str(source))
    account = account_for(selected.weights, net, names, str(source), head)
    filled = _fill(net, account)
    bad = nonfinite(account.state)
    if bad and not options.allow_nonfinite:
        raise UserError(
            f"{source}: {len(bad)} entries hold NaN or infinite values: {shorten(bad)}; the training broke down, or"
            " pass --allow-nonfinite"
        )
    proof = {}
    if options.verify:
        back = _prove_return(net, selected.weights, account, options.target, str(source))
        proof = {**_prove_answers(net, account, options, str(source)), **back}
    # Converted again: the proof's copy of what is reordered would stand beside two networks.
    written = convert(account.state, arch, OURS, options.target)
    origin = {
        "file": source.name,
        "bytes": source.stat().st_size,
        "sha256": file_hash(source),
        "kind": read_header(source).kind,
        "weights": _where(selected),
    }
    report = Report(
        source=origin,
        arch=arch,
        formats=(names, options.target),
        network=options.network(),
        parameters=sum(value.numel() for value in account.state.values() if value.is_floating_point()),
        counts={
            "read": len(selected.weights) + sum(map(len, selected.dropped.values())),
            "converted": len(written.state),
            "resized": len(account.resized),
            "dropped": sum(map(len, (*selected.dropped.values(), *account.dropped.values()))),
        },
        dropped={**selected.dropped, **account.dropped},
        resized=account.resized,
        new=list(account.new),
        filled=filled,
        left_out=written.left_out,
        nonfinite=bad,
        proof=proof or {"proof": "none (--no-verify)"},
    )
    return report, written.state


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
        inside = sorted(p for p in source.rglob("*") if p.name.endswith(CHECKPOINTS)) if source.is_dir() else [source]
        root = source if source.is_dir() else source.parent
        for path in inside:
            name = re.sub(r"(\.pth)?\.[a-z]+$", suffix, path.name)
            found.append((path, folder / path.relative_to(root).with_name(name)))
    if not found:
        raise UserError(f"{', '.join(map(str, sources))}: no {', '.join(CHECKPOINTS)} files there")
    return found


def _check_target(target: Path, options: ConvertOptions) -> None:
    if target.suffix not in SUFFIXES:
        raise UserError(f"{target}: give a name that ends in {', '.join(SUFFIXES)}")
    # A name with the content's hash cannot hold anything else.
    for path in () if options.force or options.hashed else (target, target.with_suffix(".json")):
        if path.exists():
            raise UserError(f"{path} exists; pass --force to replace it, or give another name")


def _identify(selected: Selection, name: str, options: ConvertOptions) -> tuple[str, str]:
    """Return the architecture and the format of the names."""
    if options.arch is None:
        match = identify(selected.weights, name)
        arch, source = match.arch, match.format
    else:
        arch, source = options.arch, "auto"
    family = backbone_class(arch)
    for format_name in {options.source, options.target} - {"auto", OURS, *family.formats}:
        raise unknown_name(f"format of {family.family}", format_name, [OURS, *family.formats])
    if options.source != "auto":
        return arch, options.source
    if source == "auto":
        with build_without_values():
            source = recognize_format(family(arch=arch, with_embedding=True), selected.weights)
    return arch, source


def _network(
    weights: Mapping[str, Tensor], arch: str, source: str, options: ConvertOptions, name: str
) -> tuple[Backbone, int | None]:
    """Build the network that the entries belong to, and return it with the classes of its head, if it has one."""
    family = backbone_class(arch)
    keys = convert(weights, arch, source).state
    heads = [key for key in HEAD if key in keys]
    if len(heads) == 1:
        raise UserError(f"{name}: holds half a classifier head: {heads[0]} alone")
    head = (*keys[HEAD[0]].shape, 0)[0] if heads else None
    with build_without_values():
        embedding = {
            key for key in family(arch=arch, with_embedding=True).state_dict() if _matches(family.embed_only, key)
        }
    # Dense files may hold a part of what a classifier needs; it is left behind.
    absent = family.formats[source].absent if source != OURS else ()
    embeds = bool(heads) or all(key in keys for key in embedding if not _matches(absent, key))

    lacking = options.network().keys() - inspect.signature(family.__init__).parameters.keys()
    if lacking:
        raise UserError(f"{arch} has no option {', '.join(sorted(lacking))}: nothing in it depends on that")
    dense = not embeds or any(_matches(family.dense_only, key) for key in keys)
    outputs = {} if dense or not family.dense_only else {"out_indices": ()}
    try:
        with build_without_values():
            return family(arch=arch, with_embedding=embeds, **outputs, **options.network()), head
    except TypeError:
        given = ", ".join(f"{key}={value}" for key, value in options.network().items())
        raise UserError(f"{arch} does not take {given}; see its class for their form") from None


def _fill(net: Backbone, account: FittedState) -> list[str]:
    """Give entries that the source's format has no name for the value that the network starts with; return them."""
    absent = net.formats[account.source].absent if account.source != OURS else ()
    filled = [key for key in account.new if _matches(absent, key) and not _matches(net.dense_only, key)]
    if filled:
        own = net.state_dict()
        with build_without_values(max(own[key].numel() for key in filled)):
            fresh = type(net)(arch=net.arch, with_embedding=net.with_embedding).state_dict()
        account.state |= {key: fresh[key] for key in filled}
        account.new = tuple(key for key in account.new if key not in filled)
    return filled


def _prove_return(
    net: Backbone, weights: Mapping[str, Tensor], account: FittedState, target: str, name: str
) -> dict[str, str]:
    """Convert there and back, and return what that proved, or raise a UserError."""
    written = convert(account.state, net.arch, OURS, target)
    exempt = {*account.resized, *written.left_out}
    kept = {key: value for key, value in account.state.items() if key not in exempt}
    expected = convert(kept, net.arch, OURS, account.source).state
    back = convert(convert(written.state, net.arch, target).state, net.arch, OURS, account.source).state
    lost = [*differing(expected, weights), *differing(expected, back)]
    if lost:
        raise UserError(
            f"{name}: {len(lost)} entries do not come back as they were: {shorten(lost)}; the file mixes names of two"
            f" formats, or is not in {account.source} names: say --from"
        )
    return {"goes back": f"{len(expected)} entries with the same bytes under {account.source} names"}


def _prove_answers(net: Backbone, account: FittedState, options: ConvertOptions, name: str) -> dict[str, str]:
    """Run the network and the libraries' own, and return what that proved, or raise a UserError."""
    size = options.img_size or getattr(net.archs[net.arch], "img_size", 224)
    size = (size, size) if isinstance(size, int) else size
    answer = run(net, account.state, fixed_images(size, options.in_channels))
    what = "maps" if not net.with_embedding else "logits" if HEAD[0] in account.state else "embedding"
    finite = all(bool(x.isfinite().all()) for x in answer)
    if not finite and not options.allow_nonfinite:
        raise UserError(f"{name}: {net.arch} answers with NaN or infinite {what}; these weights do not work")
    compared = {}
    for library in sorted({account.source, options.target} - {OURS, "official"}) if finite else ():
        result = compare(net, account.state, library, options.network(), size, answer)
        if isinstance(result, str):
            compared[f"against {library}"] = f"not compared: {result}"
            continue
        difference, on = result
        if not difference <= TOLERANCE:
            raise UserError(
                f"{name}: {library}'s {net.arch} answers otherwise: {on} differ by {difference:.1e} of their standard"
                f" deviation, {TOLERANCE:.0e} is allowed; this is a bug, nothing was written"
            )
        compared[f"against {library}"] = f"{on} differ by {difference:.1e} of their standard deviation"
    return {
        **compared,
        "loads": "strictly, every entry",
        "answers": f"{'finite' if finite else 'NaN or infinite'} {what} on a fixed {_size(size)} image",
    }


def _write(
    report: Report, state: Mapping[str, Tensor], target: Path, options: ConvertOptions, after: Callable[[], None]
) -> None:
    state = file_names(state, options.target)
    container = options.container
    if container is None:
        container = "model" if options.target == "official" else "state_dict"
    note = {"format": "pt", "arch": report.arch, "names": options.target, "made_by": report.made_by}
    staged = target.with_name(f".staged.{target.name}") if options.hashed else target
    try:
        write_weights(staged, state, note, container, after)
        digest = file_hash(staged)
        if options.hashed:
            target = staged.replace(target.with_name(f"{target.stem}-{digest[:8]}{target.suffix}"))
    finally:
        if options.hashed:
            staged.unlink(missing_ok=True)
    report.file = {"file": target.name, "bytes": target.stat().st_size, "sha256": digest, "entries": len(state)}
    with replace_whole(target.with_suffix(".json")) as partial:
        json_writer(dataclasses.asdict(report))(partial)


def _where(selected: Selection) -> str:
    place = ".".join(selected.container) or "top level"
    kind = "moving average" if selected.average else "raw weights"
    prefix = f", under {selected.prefix}" if selected.prefix else ""
    other = f"; {selected.other} holds the {'raw weights' if selected.average else 'moving average'}, not taken"
    return f"{kind} in {place}{prefix}{other if selected.other else ''}"


def _matches(patterns: Sequence[str], key: str) -> bool:
    return any(re.fullmatch(pattern, key) for pattern in patterns)


def _size(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))
