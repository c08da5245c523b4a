"""What a run or a sweep will cost on a TPU, before one is rented: `python -m trm.plan`."""
