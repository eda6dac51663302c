"""Everything that our code does on a GPU, checked and measured by one command.

``python -m benchmarks.gpu``; ``README.md`` beside this says how to run it on a bare machine.
"""
