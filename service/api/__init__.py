"""HTTP in, HTTP out: bodies become task calls, events become JSON or SSE frames. No text work here.

Reading order: `exchange`, `native`, `schemas`, `sse`, `problems`, then `openai` and `ops`.
"""
