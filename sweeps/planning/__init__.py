"""What a launch would do, and what it takes."""
