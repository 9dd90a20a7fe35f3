"""A command: write one page, report.html, about one run or several.

python -m ssl.report RUN [RUN ...]
    One file, report.html in the first folder, or --output FILE: settings and their origin,
    curves, pictures, verdicts, speed and evaluations; several runs stand side by side. It opens
    from disk, needs no network and runs no script. A run may still be going on.
--pictures first passes about a thousand of the run's own images through its encoder, and adds
    neighbours, projection, correlation and spectrum. They are kept in the run folder.
"""

from pathlib import Path

from ssl.checkpoints import run_reader
from ssl.console import argument_parser, say
from ssl.errors import UserError, one_line_errors
from ssl.files import write_text
from ssl.report import encoder_pictures, page


def main() -> None:
    parser = argument_parser("ssl.report", __doc__)
    parser.add_argument("runs", metavar="RUN", type=Path, nargs="+", help="output_dir of train.py or finetune.py")
    parser.add_argument("--output", metavar="FILE", type=Path, help="default: report.html in the first run folder")
    parser.add_argument("--pictures", action="store_true", help="make pictures of the encoders, some minutes each")
    options = parser.parse_args()
    if options.pictures:
        for folder in options.runs:
            encoder_pictures.make(folder, run_reader.read(folder))
    path = options.output or options.runs[0] / "report.html"
    text = page.page([run_reader.read(folder) for folder in options.runs])
    try:
        write_text(text, path)
    except OSError as error:
        raise UserError(f"output: cannot write {path} ({error})") from None
    say(f"report      {path}")


if __name__ == "__main__":
    with one_line_errors("report"):
        main()
