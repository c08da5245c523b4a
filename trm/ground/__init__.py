"""The ground floor: what any part may use, and what knows nothing of settings, models and puzzles."""
