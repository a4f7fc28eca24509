"""HTTP in, HTTP out: bodies are validated into task calls, events become JSON or SSE frames. No text work here."""
