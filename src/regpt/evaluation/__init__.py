"""Knowing what was trained: losses that compare."""
