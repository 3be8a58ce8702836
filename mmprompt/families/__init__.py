"""The families of tasks: what each asks and answers, reads from OFA's files, and how its answers are scored."""
