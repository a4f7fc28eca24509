"""One wing per processor: `torch` (the reference, on any device), `cpu`, `cuda`.

A wing enters no other wing. `kernel_check` is what their self-checks share.
"""
