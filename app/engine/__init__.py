"""From a query to its answer: candidates, opened, ranked. Vectors in, matches out."""
