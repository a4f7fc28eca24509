"""Models at rest and how they come to be: tasks, manifests, the store, training, evaluation.

Never imports `service`.
"""
