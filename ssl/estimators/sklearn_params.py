"""scikit-learn's conventions for arguments, without scikit-learn: get_params, set_params, clone, repr."""

import inspect
from typing import ClassVar

from ssl.errors import UserError, nearest


class Params:
    """The arguments of the constructor are attributes, and `get_params` returns the objects that were given.

    A class defines EXTRA, {name: default} of the arguments that its signature sums up as **kwargs; REPLACED, names of
    the arguments whose attribute holds what was made from them; `_check(params)`, which raises an error for values that
    cannot work; `_apply(changes)`, which puts changed arguments into effect.
    """

    EXTRA: ClassVar[dict] = {}
    REPLACED: ClassVar[set] = set()

    def __init__(self, **given):
        """Raises `UserError` for an argument that does not exist."""
        self._params = self._defaults()
        self.set_params(**self._params | given)

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
        """Change arguments of the constructor; returns self. Raises `UserError` for one that does not exist."""
        changes = self._translated(changes)
        if not changes:
            return self
        for name in changes:
            if name not in self._params:
                raise UserError(
                    f"{type(self).__name__}: there is no argument {name!r}{nearest(name, self._params, 0.75)}; "
                    f"there are {', '.join(self._params)}"
                )
        wanted = self.get_params() | changes
        self._check(wanted)
        self._params = wanted
        for name in set(changes) - self.REPLACED:
            setattr(self, name, changes[name])
        self._apply(changes)
        return self

    def _translated(self, changes: dict) -> dict:
        """`changes`, with the names of another library replaced by ours."""
        return changes

    def _changed_attributes(self) -> dict:
        """Arguments that were assigned as attributes, `model.max_epochs = 3`, and are not in effect yet."""
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
    return one is other or (isinstance(one, int | float | str) and type(one) is type(other) and one == other)


def _short(value) -> str:
    if isinstance(value, type):
        return value.__name__
    return repr(value) if isinstance(value, int | float | str | bool | None | dict) else f"<{type(value).__name__}>"
