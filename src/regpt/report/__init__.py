"""Pages and pictures of what was trained: files that open from disk and ask for nothing else."""
