"""From a trained detector and pictures to a faster one with a report: the steps of ``ltm-det
compress``, their order in ``pipeline``, what each of them is in the file of its name."""
