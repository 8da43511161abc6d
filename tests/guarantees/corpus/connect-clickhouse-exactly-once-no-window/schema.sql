CREATE TABLE web.views (at DateTime, page String)
ENGINE = MergeTree ORDER BY at;
