StreamsBuilder builder = new StreamsBuilder();
HttpClient http = HttpClient.newHttpClient();
builder.<String, String>stream("overdue")
       .peek((id, invoice) -> {
           HttpRequest post = HttpRequest.newBuilder(URI.create("https://crm.example.com/reminders"))
               .POST(HttpRequest.BodyPublishers.ofString(invoice)).build();
           try { http.send(post, HttpResponse.BodyHandlers.discarding()); } catch (Exception e) { throw new RuntimeException(e); }
       })
       .foreach((id, invoice) -> {});
