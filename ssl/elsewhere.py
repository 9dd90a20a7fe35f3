"""What other projects call our settings: for the error about an unknown one, and for docs/from-other-projects.md."""

from collections.abc import Iterable

from ssl.errors import nearest

# Ours: theirs, with _ for -. A name with two meanings stands twice; the setting that a script has is meant.
NAMES = {
    "method": "ssl_model model.name",
    "dataset": "data.dataset",
    "data_dir": "dataset_path data train_data_path data.train_path",
    "splits_folder": "split_folder",
    "image_size": "size image_shape input_size crop_size",
    "encoder": "cifar_resnet backbone backbone.name model model.encoder",
    "projector": "projector_dim model.projector model.projector_dim proj_hidden_dim proj_output_dim "
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
    "schedule": "opt cosine scheduler scheduler.name",
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
    "seed": "random_seed trial",
    "output_dir": "checkpoint_dir default_root_dir checkpoint.dir out",
    "resume": "resume_from_checkpoint auto_resume auto_resume.enabled resume_interrupted",
    "save_epochs": "save_freq checkpoint.frequency",
    "log_every": "print_freq log_every_n_steps",
}


def hint(name: str, settings: Iterable[str]) -> str:
    """The end of an error about `name`, which is none of `settings`: what is meant, or a name that is like it."""
    settings = list(settings)
    meant = next((ours for ours, theirs in NAMES.items() if name in theirs.split() and ours in settings), None)
    return f"; here that is {meant!r}, see docs/from-other-projects.md" if meant else nearest(name, settings)
