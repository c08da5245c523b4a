"""A model's thinking (trm/show/thinking.py) drawn in the terminal, as a page and as an animation."""
