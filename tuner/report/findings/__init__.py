"""What the numbers of a sweep say: intervals, comparisons, importance, ranks, diagnoses. Pure; runs on the driver."""
