"""The other end: a producer, a consumer, a group member and single questions, sans I/O, over the broker's messages."""
