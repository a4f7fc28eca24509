"""The reference: plain torch on any device. It says what fast kernels compute, and runs where they do not."""
