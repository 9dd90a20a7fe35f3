"""A command: which start is worth it on the user's images and labels; each file has one idea."""
