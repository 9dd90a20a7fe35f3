"""scikit-learn's conventions for parameters, without scikit-learn: get_params, set_params, clone, repr."""

import inspect
from typing import ClassVar

from ssl.errors import UserError, nearest


class Params:
    """What was given to the constructor is kept as it was given, and handed out again, so that `clone` works.

    A class has EXTRA, {name: default} of the arguments that its signature sums up as **kwargs, MADE, those of which
    the attribute of that name is what was made of them, `_check(params)`, which raises for values that cannot
    work, and `_adopt(changes)`, which makes some of the parameters count.
    """

    EXTRA: ClassVar[dict] = {}
    MADE: ClassVar[set] = set()

    def _begin(self, given: dict) -> None:
        """`given` is the constructor's locals(). Raises `UserError` for an argument that is not there."""
        extra = given.pop("kwargs")
        named = {name: value for name, value in given.items() if name not in ("self", "__class__")}
        self._params = named | self.EXTRA
        self.set_params(**self._params | extra)

    def get_params(self, deep: bool = True) -> dict:
        """{name: value} of all arguments of the constructor, the very objects that were given."""
        return {
            name: value if name in self.MADE else self.__dict__.get(name, value) for name, value in self._params.items()
        }

    def set_params(self, **changes):
        """Change arguments of the constructor; returns self. Raises `UserError` for one that is not there."""
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
        for name in set(changes) - self.MADE:
            setattr(self, name, changes[name])
        self._adopt(changes)
        return self

    def _translated(self, changes: dict) -> dict:
        """`changes` in the names of this class, should they be another's."""
        return changes

    def __sklearn_tags__(self):
        """What scikit-learn, since 1.6, asks a transformer that needs no labels; nothing else calls this."""
        from sklearn.utils import Tags, TargetTags, TransformerTags

        needs_labels = TargetTags(required=False)
        return Tags(estimator_type=None, target_tags=needs_labels, transformer_tags=TransformerTags())

    def _assigned(self) -> dict:
        """Arguments that were changed as attributes, `model.max_epochs = 3`, since they last counted."""
        return {name: value for name, value in self.get_params().items() if not _same(value, self._params[name])}

    def __repr__(self) -> str:
        arguments = inspect.signature(type(self).__init__).parameters.values()
        defaults = {p.name: p.default for p in arguments} | self.EXTRA
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
