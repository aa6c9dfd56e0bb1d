"""Commands, and what they show: nothing here is needed by a program that uses the networks."""
