"""TRM Scaling Study: train and ablate Tiny Recursive Models (arXiv 2510.04871) on puzzles."""
