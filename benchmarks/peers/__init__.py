"""The same counts by other packages, a script each, run by hand: docs/comparison.md."""
