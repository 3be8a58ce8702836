"""OFA and its parts, decoding, the loss, official checkpoints."""
