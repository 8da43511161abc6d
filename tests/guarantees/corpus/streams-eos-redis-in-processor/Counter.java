StreamsBuilder builder = new StreamsBuilder();
Jedis jedis = new Jedis("redis", 6379);
builder.<String, String>stream("page-views")
       .foreach((page, view) -> jedis.incr("views:" + page));
