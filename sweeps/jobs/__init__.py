"""Jobs: batches as they are stored at launch, and their execution by SLURM or by local processes."""
