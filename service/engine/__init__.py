"""The engine: tokens in, tokens out. No HTTP, no metrics library; it gets a frozen config and an observer.

Reading order: `sequence`, `block_pool`, `scheduler`, `model`, `backends`,
`detokenizer`, `engine`, `async_engine`.
"""
