"""One training run and its folder. To be called too: `trm.run([...])` trains one (trm/__init__.py)."""

import trm

trm.callable_package(__name__, trm.run)
