@Component
public class TicketListener {
    private final KafkaTemplate<String, Ticket> template;

    TicketListener(KafkaTemplate<String, Ticket> template) { this.template = template; }

    @Bean
    DefaultAfterRollbackProcessor<Object, Object> neverSkip() {
        return new DefaultAfterRollbackProcessor<>(new FixedBackOff(1000L, FixedBackOff.UNLIMITED_ATTEMPTS));
    }

    @KafkaListener(topics = "bookings")
    public void on(Booking booking) {
        template.send("tickets-issued", booking.id(), Ticket.of(booking));
    }
}
