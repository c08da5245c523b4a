"""ARC: grids of colours of any size, a few pairs that show a rule, and one to be answered."""
