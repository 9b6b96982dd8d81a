"""From a trained dense detector to a merged one: convert, calibrate, search ratios."""
