"""A report on runs from their folders alone. To be called too: `trm.report(FOLDER)` gives tables (trm/__init__.py)."""

import trm

trm.callable_package(__name__, trm.report)
