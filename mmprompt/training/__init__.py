"""The training loop, the features that a frozen backbone computes once, and pretraining."""
