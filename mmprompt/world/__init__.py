"""The small world: scenes of handwritten digits, and tasks about them. No torch, no Hydra."""
