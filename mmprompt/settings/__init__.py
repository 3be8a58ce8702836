"""What a section of settings is, and a module for each method of tuning: its settings, its label and its words."""
