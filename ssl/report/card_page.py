"""The report card of encoders, as `evaluate.py --protocol card` measures it: a section of a report, and card.svg."""

from pathlib import Path

from ssl.checkpoints.run_reader import Run
from ssl.console import say
from ssl.errors import UserError
from ssl.evaluation import card_table, results
from ssl.files import write_text
from ssl.report import interval_plot
from ssl.report.accuracies import SUBJECTS
from ssl.report.markup import figure, table, text
from ssl.report.page_style import STYLE

CAPTION = (
    "Report card: bars are 95 % intervals, of few labels over the draws; three strengths of a change are joined, the "
    "smallest dot is the strongest"
)


def section(runs: list[Run]) -> str:
    """The cards of all runs side by side, as HTML; "" where there are none."""
    cards = {}
    for run in runs:
        of = f", {run.short_name}" if len(runs) > 1 else ""
        for file, content in run.results.items():
            where = f" ({file})" if len(run.results) > 1 else ""
            cards |= {f"{name}{of}{where}": card for name, card in _cards(content).items()}
    if not cards:
        return ""
    rows = card_table.side_by_side(cards)
    lines = [[text(f"{part}: {what}"), *map(text, words)] for (part, what), words in rows.items()]
    drawn = figure(CAPTION, _picture(cards))
    notes = "".join(f"<li>{text(line)}</li>" for line in card_table.below(cards))
    return (
        drawn + table("Report card: in brackets 95 % intervals", ["", *cards], lines) + f'<ul class="soft">{notes}</ul>'
    )


def write(found: dict, folder: Path) -> None:
    """Write card.svg, a picture of the cards in the results `found`, into `folder`; an earlier one gets a number.

    Without a card there is none.
    """
    cards, path = _cards(found), folder / "card.svg"
    head, end, rest = _picture(cards).partition("</title>") if cards else ("", "", "")
    style = f'<style>{STYLE}</style><rect width="100%" height="100%" fill="var(--bg)"/>'
    picture = f"{head}{end}{style}{rest}\n"
    try:
        results.keep_earlier(path, picture)
        if not cards:
            return
        write_text(picture, path)
    except OSError as error:
        raise UserError(f"output_dir: cannot write {path} ({error}); results.json is complete") from None
    say(f"picture     {path}")


def _cards(content: dict) -> dict[str, dict]:
    """{title of a subject: its card} of a results.json."""
    weights = card_table.inner(content, "of", "weights")
    found = {name: content if name == "trained" else card_table.inner(content, name) for name in SUBJECTS}
    cards = {
        results.title(name, {"steps": weights.get("steps")}): card_table.inner(own, "card")
        for name, own in found.items()
    }
    return {name: card for name, card in cards.items() if card}


def _picture(cards: dict[str, dict]) -> str:
    return interval_plot.draw({name: card_table.rows(card) for name, card in cards.items()}, CAPTION)
