CREATE TABLE web.taps (at DateTime, device String)
ENGINE = MergeTree ORDER BY at
SETTINGS non_replicated_deduplication_window = 1000;
