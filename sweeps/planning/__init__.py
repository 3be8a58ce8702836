"""Launch plans: what a launch would do, what it costs, and which differences its seeds can show."""
