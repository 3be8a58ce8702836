"""What the store, and a W&B server, hold: sweeps and runs read, checked, and put together as frames."""
