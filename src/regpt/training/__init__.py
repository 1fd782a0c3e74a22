"""Training: one visible loop (`loop.py`) over small verbs, each in a file of its own."""
