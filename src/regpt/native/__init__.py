"""GPT-2's decoding step in C: compiled once on the machine it runs on, where it can be."""
