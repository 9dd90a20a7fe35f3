"""What an encoder is worth: its features, probes, k-NN, metrics and results; and what a fine-tuned one predicts."""
