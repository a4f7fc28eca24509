"""Simple text and more tasks on top of the built-in model: tried and not shipped; what came of it is in
docs/pretraining.md. `prepare.py` makes the data, `average.py` the weights.
"""
