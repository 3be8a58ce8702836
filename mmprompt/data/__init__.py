"""Examples of a task: from the small world or from OFA's files, as token ids."""
