"""The package of this project. It shares its name with a module of the standard library.

`import torch` imports the standard module `ssl`, and so do pip, urllib and every debugger. A package that hid it would
stop them all. So this file finds the standard module, gives it this folder as `__path__`, and puts it into
`sys.modules`. Afterwards `ssl` is the standard module, complete, and `ssl.losses` is ours. If the standard module was
imported first, a line in every script does the same, and so does the first cell of `examples/first_encoder.ipynb`.
"""

import sys
from importlib.machinery import PathFinder
from importlib.util import module_from_spec

_specs = (PathFinder.find_spec("ssl", [entry]) for entry in sys.path)
# The standard one is a module, not a package; another clone of this project may be on sys.path, too.
_spec = next(spec for spec in _specs if spec and not spec.submodule_search_locations)
_stdlib = module_from_spec(_spec)
_stdlib.__path__ = __path__
sys.modules["ssl"] = _stdlib  # before it runs, as its enums look for it there
_spec.loader.exec_module(_stdlib)
