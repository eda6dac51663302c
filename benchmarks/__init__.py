"""What our figures come from, for anyone to run again.

A package, so that another one of this name in an environment is not taken for it.
"""
