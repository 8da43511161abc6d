"""semel: stream processing whose exactly-once holds end to end, says where it stops, and can be put to the proof."""
