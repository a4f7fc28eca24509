"""The running service: HTTP in front, tasks behind it, the engine underneath. Read `docs/architecture.md` first."""
