"""One training: claim, fit, build, calibrate, swap."""
