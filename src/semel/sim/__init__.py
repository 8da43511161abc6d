"""The world, simulated: one broker on a disk that fails, several clients over a network that fails, one seed."""
