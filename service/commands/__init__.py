"""The commands that ask a model: generate, summarize, ask, chat, batch.

Each asks a service at `--url`, or loads a model into this process. Like `cli` they write to the terminal;
texts go to standard output, all else to standard error. Exit codes: 0 done, 1 it failed, 2 something that was
given is not legal, 130 interrupted. Importing them is quick.
"""
