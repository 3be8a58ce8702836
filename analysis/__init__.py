"""From runs to statistics to tables and figures. Reads the store; never torch, Hydra or `sweeps`."""
