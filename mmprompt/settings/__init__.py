"""The settings: a module for each section of a configuration and for each method of tuning, and how they are checked and listed."""
