"""What a puzzle is: everything that knows about one kind of puzzle lies in its folder here.

Importing this makes the settings of all of them known: the class Settings of each folder's settings.py.
"""

import importlib
import pkgutil

from trm.config import TASKS as TASKS

for _folder in pkgutil.iter_modules(__path__):
    if _folder.ispkg:
        TASKS[_folder.name] = importlib.import_module(f"{__name__}.{_folder.name}.settings").Settings
