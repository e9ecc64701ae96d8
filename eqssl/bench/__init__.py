"""`eqssl bench`: speed as ratios measured in one run, against the limit of the device and against other libraries."""
