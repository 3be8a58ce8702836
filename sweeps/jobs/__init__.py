"""Jobs as frozen at launch; SLURM and local processes; what runs on the node."""
