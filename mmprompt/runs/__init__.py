"""What a run is: its settings, its id, its folder, the records it leaves. No torch, no Hydra."""
