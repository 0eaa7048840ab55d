"""The demonstration on the embedded model, with a report to look at."""
