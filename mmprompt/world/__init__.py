"""The small world: scenes of handwritten digits, and what can be said of them. No torch, no Hydra."""
