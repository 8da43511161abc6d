SET 'execution.checkpointing.interval' = '1min';
CREATE TABLE src (a STRING) WITH ('connector' = 'kafka', 'topic' = 'src', 'format' = 'json');
CREATE TABLE dst (a STRING) WITH ('connector' = 'kafka', 'topic' = 'dst', 'sink.delivery-guarantee' = 'exactly-once);
INSERT INTO dst SELECT a FROM src;
