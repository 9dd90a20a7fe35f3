"""The last lines of a script: the commands that are useful next."""

from pathlib import Path

from ssl.checkpoints import published
from ssl.console import say
from ssl.settings.command import command
from ssl.settings.shared import DATA
from ssl.training import best_model

PASSED_ON = (*DATA, "value_range", "mean", "std", "encoder", "encoder_kwargs", "stem")  # by evaluate.py to finetune.py
METHODS = ("simclr", "swav", "byol", "moco", "infomin")  # formats of weights that finetune.py calls methods


def after_training(run: Path, classes: list[str], judged: bool = False) -> None:
    """The last lines of train.py; `judged` if it has judged the run and made its pictures.

    `classes` are those of its images: without two of them there is nothing to judge.
    """
    if len(classes) > 1:
        if not judged:
            say(f"judge it    {command('evaluate.py', model_path=run)}")
        say(f"fine-tune   {command('finetune.py', init=run)}")
    else:
        if not judged:
            say(f"look at it  {command('ssl.report', run, '--pictures')}")
        say(f"features    {command('evaluate.py', model_path=run, protocol='features', csv_features=True)}")


def after_evaluation(settings, origin: dict[str, str], folder: Path, classes: list[str]) -> None:
    """The last lines of evaluate.py, of images of these classes. `origin`: of `config.parse`."""
    if classes:
        after_judging(settings.model_path, given(settings, origin))
    elif settings.near_duplicates is None:
        say(f"duplicates  {command('evaluate.py', features=folder / 'features.pt', near_duplicates=0.95)}")


def given(settings, origin: dict[str, str]) -> dict[str, object]:
    """The settings of evaluate.py that the user has set and finetune.py needs again. `origin`: of `config.parse`."""
    kept = {name: getattr(settings, name) for name in PASSED_ON if origin[name] != "default"}
    return kept | {"method": settings.init_format if settings.init_format in METHODS else None}


def after_judging(model: str | None, settings: dict[str, object]) -> None:
    """The last lines of evaluate.py: fine-tune the encoder `model` with these settings; use one that is fine-tuned.

    `model` is a run folder, a file or a published name. Nothing is printed where it is None or is no longer there.
    """
    if model is None:
        return
    path = Path(model)
    run = path if path.is_dir() else path.parent
    if path.exists() and best_model.is_of_finetuning(run):
        after_test(run)
    elif path.exists() or published.is_name(model):
        say(f"fine-tune   {command('finetune.py', init=model, **settings)}")


def after_fine_tuning(run: Path, model: Path) -> None:
    """The last lines of finetune.py. `run` is its run folder, `model` that of the first of its models."""
    after_test(model)
    say(f"test more   {command('finetune.py', test_only=True, model_path=run, data_dir='OTHER')}")
    say(f"export      {command('ssl.export', model)}")


def after_test(model: Path) -> None:
    """The last line of a test of `model`, a run folder of finetune.py or its best.pt: predict other images with it."""
    say(f"predict     {command('finetune.py', predict='IMAGES', model_path=model)}")
