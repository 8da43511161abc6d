CREATE SOURCE purchases (buyer VARCHAR, amount INT) WITH (
  connector = 'kafka', topic = 'purchases', properties.bootstrap.server = 'kafka:9092', scan.startup.mode = 'earliest'
) FORMAT PLAIN ENCODE JSON;
CREATE MATERIALIZED VIEW spend AS SELECT buyer, SUM(amount) AS total FROM purchases GROUP BY buyer;
CREATE SINK spend_out FROM spend WITH (
  connector = 'kafka', topic = 'spend-out', properties.bootstrap.server = 'kafka:9092',
  primary_key = 'buyer', properties.enable.idempotence = 'true'
) FORMAT UPSERT ENCODE JSON;
