"""Side by side on this machine: each system in a process of its own, in alternating rounds."""
