"""What a search is: its trials, what they came to, what is tried next, and the statistics of few seeds. No torch, no Hydra."""
