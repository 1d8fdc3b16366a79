"""The process: supervisor, HTTP server, embedded PostgreSQL, and the application that they run."""
