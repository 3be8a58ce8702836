"""What each method of tuning adds to the backbone, and what it trains."""
