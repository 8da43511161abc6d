CREATE TABLE pins (at DateTime, pin String)
ENGINE = ReplicatedMergeTree ORDER BY at;
