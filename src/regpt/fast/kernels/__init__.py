"""Loops in C that torch has no operator for, compiled once where they run, where they can be."""
