"""Images: data sets by name, deterministic batches, nothing that knows of a model."""
