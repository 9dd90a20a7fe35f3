"""What an encoder is worth, by features, probes and k-NN; what it finds alike; what a fine-tuned one predicts."""
