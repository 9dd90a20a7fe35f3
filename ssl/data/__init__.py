"""The way of an image: from its file to a batch of views on the training device."""
