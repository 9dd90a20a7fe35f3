"""Arguments of Lightning's Trainer, which nidl's estimators accept: what they mean here, or what to do instead."""

from ssl.errors import UserError

ACCELERATORS = {"auto": "auto", "cpu": "cpu", "gpu": "cuda", "cuda": "cuda"}
PRECISIONS = {
    None: "off",
    32: "off",
    "32": "off",
    "32-true": "off",
    16: "fp16",
    "16": "fp16",
    "16-mixed": "fp16",
    "bf16-mixed": "bf16",
}
# Name: (values that ask for what happens here anyway, what to do instead of passing another value).
FIXED = {
    "accumulate_grad_batches": ((None, 1), "pass a larger batch_size, or use train.py --accumulate"),
    "barebones": ((None, False, True), "leave it out: there is no logger, checkpoint or summary"),
    "benchmark": ((None, False), "set torch.backends.cudnn.benchmark = True"),
    "default_root_dir": ((None,), "call save(path): nothing else is written"),
    "deterministic": ((None, False), "call torch.use_deterministic_algorithms(True); a CPU needs nothing"),
    "detect_anomaly": ((None, False), "call torch.autograd.set_detect_anomaly(True)"),
    "devices": ((None, "auto", 1, "1"), "start the script by torchrun --nproc_per_node N, a process for each device"),
    "enable_autolog_hparams": ((None, True, False), "leave it out: there is no logger"),
    "enable_checkpointing": ((None, False), "call save(path) after fit, or in a callback"),
    "enable_model_summary": ((None, False), "print(model.net)"),
    "enable_progress_bar": ((None, True, False), "pass verbose=True or verbose=False"),
    "fast_dev_run": ((None, False), "pass max_steps=1"),
    "gradient_clip_algorithm": ((None,), "lower learning_rate, or use train.py --clip_grad"),
    "gradient_clip_val": ((None, 0, 0.0), "lower learning_rate, or use train.py --clip_grad"),
    "ignore": ((None,), "leave it out: save keeps plain values, and load says what it needs"),
    "inference_mode": ((None, True, False), "leave it out: validation and transform record no graph"),
    "limit_predict_batches": ((None, 1.0), "pass fewer samples to transform"),
    "limit_test_batches": ((None, 1.0), "leave it out: there is no test of pre-training"),
    "limit_val_batches": ((None, 1.0), "pass fewer samples as val"),
    "log_every_n_steps": ((None,), "read `history`, which has one line per epoch"),
    "logger": ((None, False), "read `history`, or log in a callback, which is given (estimator, epoch, metrics)"),
    "max_time": ((None,), "raise KeyboardInterrupt in a callback: what was learnt stays, and resume=True continues"),
    "min_epochs": ((None,), "leave it out: nothing ends before max_epochs or max_steps"),
    "min_steps": ((None,), "leave it out: nothing ends before max_epochs or max_steps"),
    "model_registry": ((None,), "call save(path) after fit"),
    "num_nodes": ((None, 1), "start the script by torchrun --nnodes N on each node"),
    "overfit_batches": ((None, 0, 0.0), "pass limit_train_batches"),
    "plugins": ((None, []), "pass precision for the type of numbers, and start several processes by torchrun"),
    "profiler": ((None,), "use torch.profiler around fit"),
    "reload_dataloaders_every_n_epochs": ((None, 0), "each epoch iterates the loader again: let it give other data"),
    "save_hparams": ((None, True), "leave it out: save keeps plain values"),
    "strategy": ((None, "auto", "ddp"), "leave it out: processes that torchrun starts train one network"),
    "sync_batchnorm": ((None, True), "leave it out: batch norm sees the batch of all processes"),
    "use_distributed_sampler": ((None, False), "pass samples and views, or a loader with a DistributedSampler"),
    "val_check_interval": ((None, 1.0), "pass check_val_every_n_epoch"),
}


def translated(given: dict) -> dict:
    """`given` with Lightning's arguments replaced by ours, and without those that ask for what happens here anyway.

    Raises `UserError` for what is not done here, and says what to do instead; also for an accelerator that does not
    agree with device, and a progress bar that does not agree with verbose. Arguments of other names are returned as
    they are.
    """
    ours = {name: value for name, value in given.items() if name not in FIXED and name != "accelerator"}
    for name, (usual, instead) in FIXED.items():
        if name in given and not any(type(given[name]) is type(value) and given[name] == value for value in usual):
            raise UserError(f"{name}={given[name]!r} of Lightning's Trainer is not done here; {instead}")
    accelerator = given.get("accelerator", "auto")
    if not isinstance(accelerator, str) or accelerator not in ACCELERATORS:
        raise UserError(f"accelerator: {accelerator!r} is none of {', '.join(ACCELERATORS)}")
    if accelerator != "auto":
        device = ACCELERATORS[accelerator]
        if given.get("device", "auto") not in ("auto", device):
            raise UserError(
                f"accelerator={accelerator!r} and device={given['device']!r} do not agree; pass one of them"
            )
        ours["device"] = device
    if given.get("enable_progress_bar") is False or given.get("barebones"):
        ours["verbose"] = False
    elif given.get("enable_progress_bar"):
        if not given.get("verbose", True):
            raise UserError("enable_progress_bar=True and verbose=False do not agree; pass one of them")
        ours["verbose"] = True
    if isinstance(given.get("precision", ()), str | int | None):
        ours["precision"] = PRECISIONS.get(given["precision"], given["precision"])
    return ours
