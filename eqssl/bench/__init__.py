"""`eqssl bench`: speed as ratios measured in one run, beside the limit of the device and beside other libraries."""
