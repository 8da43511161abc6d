CREATE TABLE bets (player TEXT, stake BIGINT) WITH (
  connector = 'kafka', bootstrap_servers = 'kafka:9092', topic = 'bets-topic',
  format = 'json', type = 'source', 'source.offset' = 'earliest', 'source.read_mode' = 'read_committed'
);
CREATE TABLE stakes (player TEXT, stake BIGINT) WITH (
  connector = 'kafka', bootstrap_servers = 'kafka:9092', topic = 'stakes-topic',
  format = 'json', type = 'sink', 'sink.commit_mode' = 'exactly_once'
);
INSERT INTO stakes SELECT player, stake FROM bets WHERE stake > 100;
