"""Checks of what a cluster needs, on the login node and on a compute node."""
