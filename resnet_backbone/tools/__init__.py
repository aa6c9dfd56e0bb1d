"""The commands; programs that use the networks do not need them."""
