CREATE STREAM trades (symbol VARCHAR KEY, price DOUBLE) WITH (KAFKA_TOPIC='trades-raw', VALUE_FORMAT='JSON');
CREATE TABLE highs WITH (KAFKA_TOPIC='highs-out') AS SELECT symbol, MAX(price) AS high FROM trades GROUP BY symbol EMIT CHANGES;
