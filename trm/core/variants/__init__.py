"""The recursion variants, a file each: importing this folder registers all of them. trm.py is the paper's."""

import importlib
import pkgutil

for _module in pkgutil.iter_modules(__path__, f"{__name__}."):
    importlib.import_module(_module.name)
