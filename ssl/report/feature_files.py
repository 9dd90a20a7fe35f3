"""What evaluate.py writes of features beside features.pt: features.npz, features.csv, near duplicates."""

from pathlib import Path

import torch

from ssl.console import say
from ssl.data.images import Images
from ssl.errors import UserError
from ssl.evaluation import feature_table, npz
from ssl.evaluation.features import Features
from ssl.report import duplicates_page


def write(
    found: Features, settings, folder: Path, device: torch.device, images: dict[str, Images] | None = None
) -> None:
    """Write into `folder` what the settings of evaluate.py ask for: `npz`, `csv_features`, `near_duplicates`.

    `images` are those of the features, by split, for pictures of near duplicates. Raises `UserError` where a file
    cannot be written; an earlier one is then unchanged.
    """
    try:
        for asked, file, form in (
            (settings.npz, folder / "features.npz", npz),
            (settings.csv_features, folder / "features.csv", feature_table),
        ):
            if asked:
                form.write(found, file)
                say(f"features    {file}")
        if settings.near_duplicates is not None:
            duplicates_page.write(found, settings.near_duplicates, device, images, folder)
    except OSError as error:
        raise UserError(
            f"output_dir: cannot write to {folder} ({error}). features.pt is complete: make room, and pass it as "
            "--features, with another --output_dir if need be"
        ) from None
