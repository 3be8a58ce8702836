"""What a cluster needs: the checks on the login node and on a compute node."""
