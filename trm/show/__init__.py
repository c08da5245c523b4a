"""A model's thinking (trm/thinking.py) drawn in the terminal, as a page and as an animation."""
