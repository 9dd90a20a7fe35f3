"""A command: write one page, report.html, about one run or several.

python -m ssl.report RUN [RUN ...]
    One file, report.html in the first folder, or --output FILE: what ran, accuracies, health,
    curves, pictures, speed and settings; several runs stand side by side. It opens from disk,
    needs no network and runs no script. A run may still be going on.
python -m ssl.report runs
    The same for all runs below this folder. More than six have a line each, and no pictures.
--pictures first passes about a thousand of the run's own images through its encoder, and adds
    neighbours, maps of the features (PCA; UMAP or t-SNE, where umap or scikit-learn is
    installed), correlation and spectrum. They are kept in the run folder.
"""

from pathlib import Path

from ssl import failures
from ssl.checkpoints import run_reader
from ssl.console import argument_parser, counted, say
from ssl.distributed import be_alone
from ssl.errors import UserError, one_line_errors
from ssl.files import write_text
from ssl.report import encoder_pictures, page
from ssl.report.overview import MOST_COLUMNS

MOST = 200  # runs of a report


def main() -> None:
    be_alone()
    parser = argument_parser("ssl.report", __doc__)
    about = "output_dir of train.py or finetune.py, or a folder above several"
    parser.add_argument("runs", metavar="RUN", type=Path, nargs="+", help=about)
    parser.add_argument("--output", metavar="FILE", type=Path, help="default: report.html in the first run folder")
    parser.add_argument("--pictures", action="store_true", help="make pictures of the encoders, some minutes each")
    options = parser.parse_args()
    given = [path for path in options.runs if path.name != "report.html"]  # `runs/*` names an earlier report, too
    folders = find(given)
    if options.pictures:
        make_pictures(folders, given)
    path = options.output or given[0] / "report.html"
    text = page.page([run_reader.read(folder, figures=len(folders) <= MOST_COLUMNS) for folder in folders])
    try:
        write_text(text, path)
    except OSError as error:
        raise UserError(f"output: cannot write {path} ({error})") from None
    say(f"report      {path}" + (f", of {counted(len(folders), 'run')}" if folders != given else ""))


def find(given: list[Path]) -> list[Path]:
    """The run folders that are named, or lie below those that are named. Raises `UserError` where one has none."""
    found: dict[Path, Path] = {}  # where a run really is, also behind a link: its path as it was named
    for folder in given:
        if not folder.is_dir():
            raise UserError(f"{folder} is not a folder; pass the output_dir of train.py or finetune.py")
        runs = run_reader.find(folder)
        if not runs:
            raise UserError(
                f"{folder}: neither it nor a folder in it is a run folder, with {', '.join(run_reader.MARKS)}; pass "
                "the output_dir of train.py or finetune.py, or a folder that holds some"
            )
        for run in runs:
            found.setdefault(run.resolve(), run)
    if not found:
        raise UserError("report.html is no run folder; pass the output_dir of train.py or finetune.py")
    folders = list(found.values())
    if len(folders) > MOST:
        say(f"*** {len(folders)} runs: the report has the {MOST} that changed last ***")
        folders = sorted(folders, key=lambda folder: folder.stat().st_mtime)[-MOST:]
    return folders


def make_pictures(folders: list[Path], given: list[Path]) -> None:
    """Make the pictures of each run. What cannot be made stops the command only for a run that was named itself."""
    for folder in folders:
        try:
            encoder_pictures.make(folder, run_reader.read(folder))
        except UserError as error:
            if folder in given:
                raise
            say(f"*** no pictures of {folder}: {error} ***")


if __name__ == "__main__":
    with one_line_errors("report", failures.explain):
        main()
