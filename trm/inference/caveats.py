"""What changes how the results of a way of inference may be read."""

from trm.config import Config


def caveats_of(cfg: Config) -> list[str]:
    """In words, a line each."""
    way, found = cfg.inference, []
    if way.restarts > 1 and cfg.latents.init != "random":
        found.append(
            f"inference.restarts={way.restarts}: the model was not trained with random starts, so it may solve fewer puzzles "
            "from them, and a small change of its logits may not mean that its answer is right"
        )
    return found
