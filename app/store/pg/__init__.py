"""The driver: engine, pool, types, failures."""
