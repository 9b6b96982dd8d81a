"""What a model costs: GMACs, time, memory, and the peers it is set beside."""
