producer.send(new ProducerRecord<>("bookings", booking.id(), booking.json()));
