SET 'execution.checkpointing.interval' = '10s';
SET 'execution.checkpointing.mode' = 'EXACTLY_ONCE';
CREATE TABLE pageviews (u STRING, page STRING) WITH (
  'connector' = 'kafka', 'topic' = 'pageviews', 'properties.bootstrap.servers' = 'kafka:9092',
  'properties.group.id' = 'top', 'properties.isolation.level' = 'read_committed',
  'scan.startup.mode' = 'earliest-offset', 'format' = 'json'
);
CREATE TABLE loud_pages (u STRING, page STRING) WITH (
  'connector' = 'kafka', 'topic' = 'loud-pages', 'properties.bootstrap.servers' = 'kafka:9092', 'format' = 'json'
);
INSERT INTO loud_pages SELECT u, page FROM pageviews;
