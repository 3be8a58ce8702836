"""The methods of tuning: what each adds to the backbone, and what it trains."""
