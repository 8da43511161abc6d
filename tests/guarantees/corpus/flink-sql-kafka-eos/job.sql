SET 'execution.checkpointing.interval' = '1min';
SET 'pipeline.name' = 'spend';

CREATE TABLE purchases (
  buyer STRING, amount DECIMAL(12, 2), at TIMESTAMP(3)
) WITH (
  'connector' = 'kafka',
  'topic' = 'purchases-topic',
  'properties.bootstrap.servers' = 'kafka:9092',
  'properties.group.id' = 'spend',
  'properties.isolation.level' = 'read_committed',
  'scan.startup.mode' = 'group-offsets',
  'format' = 'json'
);

CREATE TABLE spend (
  buyer STRING, amount DECIMAL(12, 2)
) WITH (
  'connector' = 'kafka',
  'topic' = 'spend-topic',
  'properties.bootstrap.servers' = 'kafka:9092',
  'properties.transaction.timeout.ms' = '900000',
  'sink.delivery-guarantee' = 'exactly-once',
  'sink.transactional-id-prefix' = 'spend-job',
  'format' = 'json'
);

INSERT INTO spend SELECT buyer, amount FROM purchases WHERE amount > 0;
