"""What surrounds each request: authentication, limits, errors, metrics, logs."""
