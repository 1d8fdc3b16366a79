"""What is measured of the service while it works."""
