"""Paired runs and what is read off them: comparisons, tables, Pareto fronts, the bottleneck."""
