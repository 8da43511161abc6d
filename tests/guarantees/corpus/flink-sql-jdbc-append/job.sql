SET 'execution.checkpointing.interval' = '30s';
CREATE TABLE alarms (id STRING, level INT) WITH (
  'connector' = 'kafka', 'topic' = 'alarms', 'properties.bootstrap.servers' = 'kafka:9092',
  'properties.isolation.level' = 'read_committed', 'properties.group.id' = 'alarms-db',
  'scan.startup.mode' = 'earliest-offset', 'format' = 'json'
);
CREATE TABLE alarm_rows (id STRING, level INT) WITH (
  'connector' = 'jdbc', 'url' = 'jdbc:mysql://db:3306/ops', 'table-name' = 'alarm_rows'
);
INSERT INTO alarm_rows SELECT id, level FROM alarms;
