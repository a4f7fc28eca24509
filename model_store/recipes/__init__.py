"""What only the built-in model needs: its recipes (TOML), made questions, conversations from stories, heads
that copy from the first step, and Muon. Training uses these where a source, a new model or an option asks.
"""
