"""A completion server for base models: one seed, one prompt, one text, in any company."""
