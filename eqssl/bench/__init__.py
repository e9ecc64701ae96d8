"""`eqssl bench`: speed and memory as ratios measured in one run, beside the limit and beside what others use.

Every comparison is interleaved (A B A B ...), so that whatever else the machine does reaches all sides alike.
"""
