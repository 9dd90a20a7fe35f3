"""A command: kill, stop and damage a small run on this machine, and compare the weights."""
