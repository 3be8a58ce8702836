"""The training loop, what a frozen backbone computes once, pretraining."""
