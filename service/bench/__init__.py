"""`textgen bench`: load and storms against a server, from the outside, over HTTP.

Knows the HTTP contract and nothing of the service behind it, so that it measures any OpenAI-compatible server
the same way. `cli` holds the commands; read `client` first (one request), then `load` (many), then `summary`
(what they amount to). `chaos` holds the storms, each a promise with a figure.
"""

from service.bench.cli import app

__all__ = ["app"]
