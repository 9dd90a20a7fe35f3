"""The project's rooms, under the name of a standard module.

`import torch` imports the standard library's `ssl`, and so do pip, urllib and
every debugger. A package that hid it would stop them all. So this file steps
aside: it finds the standard *module*, lends it this folder as `__path__`, and
puts it in place. Afterwards `ssl` is the genuine module, whole, and
`ssl.losses` is ours. The entry scripts carry the other half, one line, for
processes in which the standard module was imported first.
"""

import sys
from importlib.machinery import PathFinder
from importlib.util import module_from_spec

_specs = (PathFinder.find_spec("ssl", [entry]) for entry in sys.path)
# A module, not a package: a second clone of this project on sys.path is no answer.
_spec = next(spec for spec in _specs if spec and not spec.submodule_search_locations)
_stdlib = module_from_spec(_spec)
_stdlib.__path__ = __path__
sys.modules["ssl"] = _stdlib  # before exec: its enums look themselves up there
_spec.loader.exec_module(_stdlib)
