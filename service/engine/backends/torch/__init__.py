"""The reference: plain torch on any device, which says what the fast kernels compute and runs where they do
not.
"""
