"""What the tools in tools/analysis measure and draw, as importable functions."""
