"""Windows, accounting of weights, merge points and cues: what all families have in common."""
