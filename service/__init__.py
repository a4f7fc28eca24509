"""The running service: HTTP in front, tasks behind, the engine underneath. `docs/architecture.md` first."""
