"""OFA and its parts, decoding, the loss, and official checkpoints."""
