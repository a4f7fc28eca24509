"""Models at rest: tasks, manifests, checkpoints, tokenizers, the store; in `training`, how models come to be.

Never imports `service`, and the store never imports `training` or `recipes`.
"""
