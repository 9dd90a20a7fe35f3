"""A command: one page, report.html, of one run or several.

python -m ssl.report RUN [RUN ...]
    One file, report.html in the first folder, or --output FILE: settings and their origin,
    curves, pictures, verdicts, speed and evaluations, of several runs side by side. It opens
    from disk, needs no network and runs no script; a run may still be going on. Where
    matplotlib is installed, each run's curves are also curves.png in its folder.
--pictures first looks at the encoder: neighbours, projection, correlation and spectrum of some
    thousand of the run's own images, kept in its folder.
"""

import argparse
from pathlib import Path

from ssl.checkpoints import run_reader
from ssl.console import say
from ssl.errors import UserError, one_line_errors
from ssl.files import write_text
from ssl.report import encoder_pictures, figures, page


def main() -> None:
    about, _, details = __doc__.partition("\n\n")
    parser = argparse.ArgumentParser(
        prog="python -m ssl.report",
        description=about,
        epilog=details,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("runs", metavar="RUN", type=Path, nargs="+", help="output_dir of train.py or finetune.py")
    parser.add_argument("--output", metavar="FILE", type=Path, help="default: report.html in the first run folder")
    parser.add_argument("--pictures", action="store_true", help="look at the encoders, some minutes each")
    options = parser.parse_args()
    if options.pictures:
        for folder in options.runs:
            encoder_pictures.make(folder, run_reader.read(folder))
    path = options.output or options.runs[0] / "report.html"
    found = [run_reader.read(folder) for folder in options.runs]
    for folder, run in zip(options.runs, found):
        try:
            figures.curves(folder / "curves.png", run)
        except OSError as error:  # a folder that is only for reading
            say(f"*** {folder / 'curves.png'} could not be written ({error}) ***")
    text = page.page(found)
    try:
        write_text(text, path)
    except OSError as error:
        raise UserError(f"output: cannot write {path} ({error})") from None
    say(f"report      {path}")


if __name__ == "__main__":
    with one_line_errors("report"):
        main()
