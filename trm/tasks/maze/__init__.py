"""Mazes: a shortest path from a start to a goal through the free cells of a square."""
