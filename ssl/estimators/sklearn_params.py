"""scikit-learn's conventions for arguments, without scikit-learn: get_params, set_params, clone, repr."""

import inspect
from typing import ClassVar

import numpy as np

from ssl.errors import UserError, nearest
from ssl.estimators import arguments, lightning


class Params:
    """The arguments of the constructor are attributes, and `get_params` returns the objects that were given.

    A class defines EXTRA, {name: default} of the arguments that its signature sums up as **kwargs; REPLACED, names of
    the arguments whose attribute holds what was made from them, and cannot be assigned; `_apply(changed)`, which puts
    the arguments of these names into effect.
    """

    EXTRA: ClassVar[dict] = {}
    REPLACED: ClassVar[set] = set()

    def __init__(self, given: dict):
        """`given`: `locals()` of the constructor, so that it need not name its arguments twice.

        Raises `UserError` for an argument that does not exist.
        """
        self._params: dict = {}  # what is in effect
        named = {name: value for name, value in given.items() if name not in ("self", "kwargs", "__class__")}
        self.set_params(**self._defaults() | named | given["kwargs"])

    def __setattr__(self, name: str, value) -> None:
        if name in self.REPLACED:
            raise UserError(f"{name}: the attribute holds what was made from the argument; call set_params({name}=…)")
        super().__setattr__(name, value)

    @classmethod
    def _defaults(cls) -> dict:
        named = [p for p in inspect.signature(cls.__init__).parameters.values() if p.kind is p.POSITIONAL_OR_KEYWORD]
        return {p.name: p.default for p in named if p.name != "self"} | cls.EXTRA

    def get_params(self, deep: bool = True) -> dict:
        """{name: value} of all arguments of the constructor, the very objects that were given."""
        return {
            name: value if name in self.REPLACED else self.__dict__.get(name, value)
            for name, value in self._params.items()
        }

    def set_params(self, **changes):
        """Change arguments of the constructor; returns self. Raises `UserError` for one that does not exist.

        Arguments that were assigned as attributes, `model.max_epochs = 3`, take effect here, too. One that has its
        present value changes nothing.
        """
        changes = lightning.translated(self._assigned()) | lightning.translated(changes)
        known = self._defaults()
        for name in changes:
            if name not in known:
                raise UserError(
                    f"{type(self).__name__}: there is no argument {name!r}{nearest(name, known, 0.75)}; "
                    f"there are {', '.join(known)}"
                )
        wanted = self.get_params() | changes
        arguments.check(wanted)
        changed = {name for name in changes if name not in self._params or not _same(wanted[name], self._params[name])}
        before = dict(self.__dict__)
        try:
            self.__dict__.update({name: changes[name] for name in changes if name not in self.REPLACED})
            self._params = {name: dict(value) if isinstance(value, dict) else value for name, value in wanted.items()}
            if changed:
                self._apply(changed)
        except BaseException:  # the encoder's class may refuse its arguments
            self.__dict__.update(before)
            raise
        return self

    def _assigned(self) -> dict:
        """Arguments that were assigned as attributes, and dicts that were changed in place, not in effect yet."""
        return {name: value for name, value in self.get_params().items() if not _same(value, self._params[name])}

    def __sklearn_tags__(self):
        """Called by scikit-learn >= 1.6: a transformer that needs no labels."""
        from sklearn.utils import Tags, TargetTags, TransformerTags

        needs_labels = TargetTags(required=False)
        return Tags(estimator_type=None, target_tags=needs_labels, transformer_tags=TransformerTags())

    def __repr__(self) -> str:
        defaults = self._defaults()
        changed = [
            f"{name}={_short(value)}" for name, value in self.get_params().items() if not _same(value, defaults[name])
        ]
        return f"{type(self).__name__}({', '.join(changed)})"


def _same(one, other) -> bool:
    if one is other or type(one) is not type(other):
        return one is other
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(_same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(_same, one, other))
    return isinstance(one, int | float | str | np.generic) and bool(one == other)


def _short(value) -> str:
    if isinstance(value, type):
        return value.__name__
    return repr(value) if isinstance(value, int | float | str | bool | None | dict) else f"<{type(value).__name__}>"
