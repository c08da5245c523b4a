"""Measurements: `python -m trm.bench`."""
