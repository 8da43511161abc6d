SET 'execution.checkpointing.interval' = '30s';
CREATE TABLE moves (account STRING, amount DECIMAL(12, 2)) WITH (
  'connector' = 'kafka', 'topic' = 'moves', 'properties.bootstrap.servers' = 'kafka:9092',
  'properties.isolation.level' = 'read_committed', 'properties.group.id' = 'balances',
  'scan.startup.mode' = 'earliest-offset', 'format' = 'json'
);
CREATE TABLE balances (account STRING, amount DECIMAL(12, 2), PRIMARY KEY (account) NOT ENFORCED) WITH (
  'connector' = 'jdbc', 'url' = 'jdbc:postgresql://db:5432/bank', 'table-name' = 'balances_now'
);
INSERT INTO balances SELECT account, SUM(amount) FROM moves GROUP BY account;
