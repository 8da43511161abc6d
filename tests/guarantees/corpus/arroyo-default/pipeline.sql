CREATE TABLE hops (id TEXT, n BIGINT) WITH (
  connector = 'kafka', bootstrap_servers = 'kafka:9092', topic = 'hops-topic',
  format = 'json', type = 'source', 'source.offset' = 'earliest'
);
CREATE TABLE skips (id TEXT, n BIGINT) WITH (
  connector = 'kafka', bootstrap_servers = 'kafka:9092', topic = 'skips-topic', format = 'json', type = 'sink'
);
INSERT INTO skips SELECT id, n FROM hops;
