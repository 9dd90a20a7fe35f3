"""Hints for unknown settings and values: which setting of this or another script is meant.

docs/from-other-projects.md lists the same names of other projects.
"""

import ast
import contextlib
import difflib
from collections.abc import Iterable
from pathlib import Path

from ssl.errors import nearest

NEAR = 0.75  # how similar a word must be to be suggested (difflib)
SCRIPTS = ("train.py", "evaluate.py", "finetune.py")

# Our name: names in other projects, with _ for -. A name may stand twice; the setting that the script has is meant.
NAMES = {
    "method": "ssl_model model.name",
    "dataset": "data.dataset",
    "data_dir": "dataset_path data train_data_path data.train_path",
    "splits_folder": "split_folder",
    "image_size": "size image_shape input_size crop_size",
    "encoder": "cifar_resnet backbone backbone.name model model.encoder",
    "projector": "projector_dim model.projector model.projector_dim proj_input_dim proj_hidden_dim proj_output_dim "
    "method_kwargs.proj_hidden_dim method_kwargs.proj_output_dim",
    "init": "pretrained ckpt_path checkpoint",
    "model_path": "ckpt_path",
    "lambd": "lambda_param lamb method_kwargs.lamb",
    "loss_scale": "scale_loss method_kwargs.scale_loss",
    "temperature": "temp model.temperature method_kwargs.temperature",
    "batch_size": "model.train_batch_size model.predict_batch_size optimizer.batch_size",
    "accumulate": "model.accumulate_batches accumulate_grad_batches",
    "epochs": "n_epochs max_epochs model.n_epochs",
    "optimizer": "use_lamb optim optimizer.name",
    "linear_lr": "lr_classifier le_model.optimizer.base_lr",
    "lr": "lr_base lr_classifier learning_rate learning_rate_weights base_lr optimizer.lr model.optimizer.base_lr",
    "bias_lr": "learning_rate_biases",
    "weight_decay": "optimizer.weight_decay model.optimizer.weight_decay",
    "linear_weight_decay": "le_model.optimizer.weight_decay",
    "linear_epochs": "le_model.num_epochs",
    "linear_batch": "le_model.train_batch_size",
    "linear_momentum": "le_model.optimizer.momentum",
    "momentum": "model.optimizer.momentum",
    "exclude_bias_and_norm_wd": "exclude_bias_n_norm optimizer.kwargs.exclude_bias_n_norm",
    "schedule": "opt cosine scheduler scheduler.name lr_scheduler",
    "warmup_epochs": "warm",
    "decay_epochs": "lr_decay_epochs",
    "decay_rate": "lr_decay_rate",
    "clip_grad": "gradient_clip_val",
    "sync_bn": "syncBN sync_batchnorm",
    "crop_scale": "min_scale rrc.crop_min_scale rrc.crop_max_scale",
    "flip": "horizontal_flip hf_prob horizontal_flip.prob",
    "vertical_flip": "vf_prob",
    "rotation": "rr_degrees",
    "rotation_prob": "rotation_probability rr_prob",
    "jitter": "brightness contrast saturation hue cj_bright cj_contrast cj_sat cj_hue color_jitter.brightness "
    "color_jitter.contrast color_jitter.saturation color_jitter.hue",
    "color_distortion_strength": "cj_strength",
    "jitter_prob": "color_jitter cj_prob color_jitter.prob",
    "grayscale": "color_drop_prob random_gray_scale grayscale.prob",
    "views": "num_crops",
    "blur_prob": "gaussian_blur gaussian_prob gaussian_blur.prob",
    "blur_sigma": "sigmas",
    "blur_kernel": "filter_size",
    "solarize_prob": "solarization_prob solarization.prob",
    "mean": "normalize",
    "std": "normalize",
    "eval_every": "le_model.callback.interval le_model.callback.enabled",
    "ssl_val_interval": "check_val_every_n_epoch",
    "gpus": "devices",
    "device": "accelerator",
    "amp": "precision",
    "workers": "n_cpus num_workers data.num_workers",
    "seed": "random_seed random_state trial",
    "output_dir": "checkpoint_dir default_root_dir checkpoint.dir out",
    "resume": "resume_from_checkpoint auto_resume auto_resume.enabled resume_interrupted",
    "save_epochs": "save_freq checkpoint.frequency",
    "log_every": "print_freq log_every_n_steps",
}

# A setting of another script: what a script without it may have instead.
OF_OTHER_SCRIPTS = {"init": "model_path"}

# Names without a counterpart here: why.
WITHOUT = {
    "num_sanity_val_steps": "nothing is tried out before training",
    "le_model.val_batch_size": "it changes no number",
    "model.val_batch_size": "it changes no number",
}
# Our words for values: theirs, in lower case.
WORDS = {
    "fp16": "16 16-mixed float16 half",
    "bf16": "bf16-mixed bfloat16",
    "off": "32 32-true float32 fp32",
    "cuda": "gpu",
    "simclr": "ucl",
    "supcon": "scl",
}


def hint(name: str, settings: Iterable[str]) -> str:
    """The end of an error about `name`, an unknown setting: the one of `settings` that may be meant."""
    settings = list(settings)
    if scripts := _scripts_with(name):
        here = f"; here that is {OF_OTHER_SCRIPTS[name]!r}" if OF_OTHER_SCRIPTS.get(name) in settings else ""
        return f"; it is a setting of {scripts}{here}"
    name = name.removeprefix("ssl_") if name.startswith("ssl_model.") else name  # dal-toolbox writes both
    if name in WITHOUT:
        return f"; here is no such setting, {WITHOUT[name]}"
    meant = sorted(
        (ours for ours, theirs in NAMES.items() if name in theirs.split()), key=lambda ours: ours not in settings
    )
    for ours in meant:
        scripts = "" if ours in settings else _scripts_with(ours)
        if ours in settings or scripts:
            return f"; here that is {ours!r}{scripts and f' of {scripts}'}, see docs/from-other-projects.md"
    for ours in settings:
        if ours.startswith(f"{name}_"):
            return f"; did you mean {ours!r}?"
    if near := nearest(name, settings, NEAR):
        return near
    spellings = {theirs: ours for ours in settings for theirs in NAMES.get(ours, "").split()}
    misspelt = difflib.get_close_matches(name.lower(), spellings, 1, NEAR)
    return f"; did you mean {spellings[misspelt[0]]!r}?" if misspelt else "; --help lists the settings"


def word_for(value, words: Iterable) -> str:
    """The end of an error about `value`, an unknown word: the one of `words` that may be meant."""
    for ours in words:
        if str(value).lower() in WORDS.get(ours, "").split():
            return f"; did you mean {ours!r}?"
    return nearest(value, words, 0.6)


def _scripts_with(setting: str) -> str:
    """'train.py and finetune.py': the scripts that have this setting, by their source."""
    shared, found = _classes(Path(__file__).with_name("shared.py")), []
    for script in SCRIPTS:
        with contextlib.suppress(OSError):  # ssl/ may be copied without the scripts
            classes = shared | _classes(Path(__file__).parents[2] / script)
            found += [script] if setting in _fields("Settings", classes) else []
    return " and ".join(found)


def _classes(path: Path) -> dict[str, ast.ClassDef]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}


def _fields(name: str, classes: dict[str, ast.ClassDef]) -> set[str]:
    """The fields of a class and of its base classes."""
    if name not in classes:
        return set()
    own = {node.target.id for node in classes[name].body if isinstance(node, ast.AnnAssign)}
    return own.union(*(_fields(base.id, classes) for base in classes[name].bases))
