"""Real engines, a real daemon and what is seen of both."""
