"""What each command of the login node does, one module for each command."""
