"""scikit-learn's conventions for parameters, without scikit-learn: get_params, set_params, clone, repr."""

import inspect
from typing import ClassVar

from ssl.errors import UserError, nearest


class Params:
    """What was given to the constructor is kept as it was given, and handed out again, so that `clone` works.

    A class has EXTRA, {name: default} of the arguments that its signature sums up as **kwargs, and
    `_adopt(changes)`, which makes some of the parameters count.
    """

    EXTRA: ClassVar[dict] = {}

    def _begin(self, given: dict) -> None:
        """`given` is the constructor's locals(). Raises `UserError` for an argument that is not there."""
        extra = given.pop("kwargs")
        named = {name: value for name, value in given.items() if name not in ("self", "__class__")}
        self._params = named | self.EXTRA
        self._require_known(extra)
        self._params |= extra
        self._adopt(self._params)

    def get_params(self, deep: bool = True) -> dict:
        """{name: value} of all arguments of the constructor, the very objects that were given."""
        return dict(self._params)

    def set_params(self, **changes):
        """Change arguments of the constructor; returns self. Raises `UserError` for one that is not there."""
        self._require_known(changes)
        self._params |= changes
        self._adopt(changes)
        return self

    def _require_known(self, names) -> None:
        for name in names:
            if name not in self._params:
                raise UserError(
                    f"{type(self).__name__}: there is no argument {name!r}{nearest(name, self._params)}; "
                    f"there are {', '.join(self._params)}"
                )

    def __repr__(self) -> str:
        arguments = inspect.signature(type(self).__init__).parameters.values()
        defaults = {p.name: p.default for p in arguments} | self.EXTRA
        changed = [f"{name}={_short(value)}" for name, value in self._params.items() if value is not defaults[name]
                   and not (isinstance(value, int | float | str | bool) and value == defaults[name])]  # fmt: skip
        return f"{type(self).__name__}({', '.join(changed)})"


def _short(value) -> str:
    if isinstance(value, type):
        return value.__name__
    return repr(value) if isinstance(value, int | float | str | bool | None | dict) else f"<{type(value).__name__}>"
