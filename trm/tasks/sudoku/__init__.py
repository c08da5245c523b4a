"""Sudoku: grids of digits with boxes."""
