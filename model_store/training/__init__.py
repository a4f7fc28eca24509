"""How models come to be: data to rows, rows to weights, weights to a folder, and what the result is worth.

Each command of `cli.py` is one function of `pipeline.py`. Uses the store; the store never imports this.
"""
