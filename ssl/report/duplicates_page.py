"""Near duplicates as a table and as a page: pairs of pictures side by side, those across splits first."""

import base64
import io
from pathlib import Path

import torch
from PIL import Image

from ssl.console import say
from ssl.data.decode import BadImage, Range, decode
from ssl.data.images import Images
from ssl.evaluation import near_duplicates
from ssl.evaluation.features import Features
from ssl.evaluation.near_duplicates import KEPT, Found, Pairs
from ssl.files import write_text
from ssl.report.markup import document, figure, grid, text
from ssl.report.view_page import tile
from ssl.settings.kinds import coerce

SHOWN = 60  # pairs across splits on the page, and as many within a split
SIDE = 160  # pixels of a picture
NONE = "<p>The picture cannot be read here.</p>"


def write(
    features: Features, threshold: float, device: torch.device, images: dict[str, Images] | None, folder: Path
) -> None:
    """Find the pairs above `threshold` on `device`; write near_duplicates.csv and near_duplicates.html into `folder`.

    `images` are those of the features, by split. Without them the page shows the files that the features name.
    """
    found = near_duplicates.find(features, threshold, device)
    near_duplicates.write(found, features, folder / "near_duplicates.csv")
    page = folder / "near_duplicates.html"
    html = _page(found, features, threshold, images)
    write_text(html, page)
    where = f"{_count(found.across)} across splits, {_count(found.within)} within a split"
    more = f"; of each the {KEPT:,} highest" if max(found.across.total, found.within.total) > KEPT else ""
    say(f"duplicates  {where} have a cosine above {threshold:g}: {folder / 'near_duplicates.csv'}{more}")
    say(f"look at     {page}")
    if missing := html.count(NONE):
        say(
            f"pictures    {missing} on that page cannot be read: their files are not here, or they are images of "
            "an array. To see them leave --features out, and name encoder and images: --model_path, --data_dir"
        )


def _count(pairs: Pairs) -> str:
    return f"{pairs.total:,} pair{'s' if pairs.total != 1 else ''}"


def _page(found: Found, features: Features, threshold: float, images: dict[str, Images] | None) -> str:
    about = (
        f"<p>Pairs of images whose features have a cosine above {threshold:g}, the highest first. "
        "near_duplicates.csv lists them. The encoder decides what is alike: look, and raise or lower the value.</p>"
    )
    parts = [about]
    if len(features.splits) > 1:
        words = "A test image that has a near duplicate in train makes numbers on the test split too good."
        parts.append(_section("Across splits", words, found.across, features, images))
    words = "A near duplicate in the same split counts an image twice."
    parts.append(_section("Within a split", words, found.within, features, images))
    return document("Near duplicates", f"<main><h1>Near duplicates</h1>{''.join(parts)}</main>")


def _section(title: str, words: str, pairs: Pairs, features: Features, images: dict[str, Images] | None) -> str:
    shown = min(len(pairs), SHOWN)
    number = f"{_count(pairs)}" + (f", the {shown} highest are shown" if pairs.total > shown else "")
    listed = f"; near_duplicates.csv has the {KEPT:,} highest" if pairs.total > len(pairs) else ""
    figures = [_pair(pairs, row, features, images) for row in range(shown)]
    return f"<h2>{title}</h2><p>{number}{listed}. {words if shown else ''}</p>{grid(figures)}"


def _pair(pairs: Pairs, row: int, features: Features, images: dict[str, Images] | None) -> str:
    places = [near_duplicates.place(features, int(number[row])) for number in (pairs.first, pairs.second)]
    pictures = "".join(_picture(*place, features, images) for place in places)
    names = "<br>".join(f"{text(split)}: {text(features.name_of(split, index))}" for split, index in places)
    caption = f"<b>{pairs.cosine[row]:.4f}</b><br>{names}"
    return figure(caption, f'<div style="display:flex;gap:.5rem">{pictures}</div>')


def _picture(split: str, index: int, features: Features, images: dict[str, Images] | None) -> str:
    name = features.splits[split].paths[index]
    try:
        pixels = _decoded(name, features) if images is None else images[split].pixels(index)
    except BadImage:
        return NONE
    file = io.BytesIO()
    picture = tile(pixels, SIDE).mul(255).round().byte().permute(1, 2, 0).numpy()
    Image.fromarray(picture).save(file, "JPEG", quality=90)
    source = base64.b64encode(file.getvalue()).decode()
    return f'<img alt="{text(name)}" width="{SIDE}" height="{SIDE}" src="data:image/jpeg;base64,{source}">'


def _decoded(path: str, features: Features) -> torch.Tensor:
    given = coerce(features.settings.get("value_range"), Range | None, "features: value_range")
    return decode(path, value_range=given)
