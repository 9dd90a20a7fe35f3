"""A command that kills, stops and damages a small run on this machine, and compares the weights."""
