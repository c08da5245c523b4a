"""Many runs: sweeps, launchers, placement, and the values that the paper reports."""
