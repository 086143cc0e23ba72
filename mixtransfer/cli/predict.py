"""``predict``: what a trained model sees in images, as files; its checkpoint is all that it needs."""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path

from mixtransfer.cli.options import NAMES, add_protocols, check_protocols, positive, share, use_protocols
from mixtransfer.engine.build import one_line_errors
from mixtransfer.engine.config import make_folder
from mixtransfer.errors import UserError, visible
from mixtransfer.progress import progress_line

__all__ = ["parser", "run"]


def parser() -> argparse.ArgumentParser:
    """Return the options of ``predict``."""
    options = argparse.ArgumentParser(
        prog="mixtransfer predict",
        description="Write what a trained model sees in images: a segmentor's masks, a detector's boxes and masks in"
        " COCO's JSON, a classifier's scores as JSON and CSV. Images are read as in training, and answers are those"
        " that 'test' measures. An image that cannot be read is named, and the exit status is then 1.",
        epilog="Nothing in the checkpoint is run, the config inside it neither, unless with --trust (see SECURITY.md).",
    )
    options.add_argument(
        "checkpoint",
        metavar="CHECKPOINT",
        help=f"a checkpoint of training, or its name ({NAMES}); its config is inside",
    )
    options.add_argument("images", metavar="IMAGES", nargs="+", help="image files, and folders of them")
    options.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for everything that is written")
    options.add_argument("--show", action="store_true", help="also draw a picture of each answer, in DIR/pictures")
    options.add_argument(
        "--show-from", type=share, default=0.3, metavar="SCORE", help="instances in pictures (default: from 0.3)"
    )
    options.add_argument(
        "--batch-size", type=positive, metavar="N", help="images a pass (default: as many as the config tests with)"
    )
    options.add_argument(
        "--tile",
        type=positive,
        metavar="PX",
        help="cut images with a longer side into overlapping squares of this side",
    )
    add_protocols(options)
    options.add_argument(
        "--device", metavar="NAME", help="cpu, cuda or cuda:N (default: the first GPU if there is one)"
    )
    options.add_argument(
        "--trust", action="store_true", help="let the checkpoint run code (only if you know its author)"
    )
    return options


def run(args: argparse.Namespace) -> int:
    """Write the answers; return 0, or 1 if some of the images could not be read."""
    from mixtransfer.datasets.sources import image_files

    check_protocols(args)
    files = []
    for name in map(Path, args.images):
        if name.is_dir():
            found = image_files(name)
            if not found:
                raise UserError(f"{name}: holds no images")
            files += found
        elif name.is_file():
            files.append(name)
        else:
            raise UserError(f"{name}: no such image or folder")
    files = list({file.resolve(): file for file in files}.values())
    make_folder(args.out, "--out")

    from mixtransfer.engine.console import quiet_libraries
    from mixtransfer.evaluation.environment import device_of
    from mixtransfer.inference.model import load_model
    from mixtransfer.inference.write import Writer, output_names

    device = args.device and device_of(args.device)
    with one_line_errors(args.checkpoint), quiet_libraries():
        model = load_model(args.checkpoint, device, trust=args.trust, adapt=partial(use_protocols, args))
        # The tree of one folder starts there, whatever its images share.
        root = Path(args.images[0])
        names = output_names(files, root if len(args.images) == 1 and root.is_dir() else None)
        writer = Writer(args.out, model, names)
        progress = progress_line("predicted")
        answers = model.each(files, batch_size=args.batch_size, tile=args.tile)
        for done, (file, answer) in enumerate(answers, 1):
            if isinstance(answer, UserError):
                writer.fail(file, answer)
                print(f"mixtransfer predict: error: {answer}", file=sys.stderr)
            else:
                writer.add(file, answer)
                if args.show:
                    from mixtransfer.visualization.answers import save_answer

                    picture = args.out / "pictures" / f"{names[file]}.png"
                    save_answer(model, file, answer, picture, args.show_from)
            progress(done, len(files))
    for path in writer.close():
        print(f"saved to {visible(path)}")
    if model.task == "seg":
        print(f"masks in {visible(args.out / 'masks')}")
    if args.show:
        print(f"pictures in {visible(args.out / 'pictures')}")
    return 1 if writer.failed else 0
