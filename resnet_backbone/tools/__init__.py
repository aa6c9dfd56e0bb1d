"""Command-line tools, which programs that use the networks do not need."""
