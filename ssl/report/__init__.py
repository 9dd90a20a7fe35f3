"""A command that draws runs as one page, and the pages of images that runs write."""
