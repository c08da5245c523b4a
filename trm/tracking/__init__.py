"""Where a run's values go: metrics.jsonl always; TensorBoard and W&B as the config asks.

metrics.jsonl is the record of the run, so an error there ends the run. TensorBoard and W&B are views of it: one that breaks is
dropped with one warning, which is logged and kept in `Trackers.warnings` for summary.json. Both views name a value `kind/name`
(train/loss, eval/exact_accuracy).
"""
