"""Several scans of one head, one answer: `align` finds how the head has moved, `run` joins what was measured."""
