SET 'execution.checkpointing.interval' = '30s';
CREATE TABLE gifts (donor STRING, amount BIGINT) WITH (
  'connector' = 'kafka', 'topic' = 'gifts', 'properties.bootstrap.servers' = 'kafka:9092',
  'properties.isolation.level' = 'read_committed', 'properties.group.id' = 'donors',
  'scan.startup.mode' = 'earliest-offset', 'format' = 'json'
);
CREATE TABLE donors (donor STRING, total BIGINT, PRIMARY KEY (donor) NOT ENFORCED) WITH (
  'connector' = 'upsert-kafka', 'topic' = 'donors', 'properties.bootstrap.servers' = 'kafka:9092',
  'key.format' = 'json', 'value.format' = 'json'
);
INSERT INTO donors SELECT donor, SUM(amount) FROM gifts GROUP BY donor;
