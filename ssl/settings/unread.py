"""Settings that only some choices read: on the command line they are refused where nothing would read them.

A recipe may hold them, for those who extend it or choose otherwise.
"""

from ssl.errors import UserError

# Settings: (another setting, its values with which they are read).
READ_WITH = {
    "lambd loss_scale": ("method", ("barlow_twins",)),
    "temperature base_temperature": ("method", ("simclr", "supcon")),
    "momentum": ("optimizer", ("sgd", "lars")),
    "final_lr": ("schedule", ("cosine", "cosine_by_epoch")),
    "decay_epochs decay_rate": ("schedule", ("step",)),
    "plateau_factor plateau_patience": ("schedule", ("plateau",)),
    "lr_backbone": ("freeze", (False,)),
}


def check(settings, origin: dict[str, str], begins: bool) -> None:
    """Raise `UserError` for a setting of the command line that nothing reads; `origin` is as of `config.parse`.

    A run that does not begin, but continues, has the settings of its first start.
    """
    if not begins:
        return
    if origin.get("eval_head") == "command line" and settings.eval_every is None:
        raise UserError("eval_head: needs --eval_every; set that, too")
    for names, (other, values) in READ_WITH.items():
        for name in names.split():
            if origin.get(name) == "command line" and getattr(settings, other) not in values:
                readers = " or ".join(map(str, values))
                raise UserError(
                    f"{name}: {other} {getattr(settings, other)} does not read it, only {readers} does; leave it out"
                )
