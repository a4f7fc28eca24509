"""What only the built-in model needs: its recipes (TOML), made questions, conversations from stories, and the
heads that copy from the first step. Training uses these where a source or a new model asks for them.
"""
