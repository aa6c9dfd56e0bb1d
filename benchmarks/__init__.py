"""What this project measures: run from a checkout, never installed."""
