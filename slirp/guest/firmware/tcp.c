/*
 * TCP for one connection. Names are RFC 9293's.
 *
 * Receiving: bytes in order go to the consumer where they lie, in the receive buffer of the
 * Lance. Bytes ahead of rcv_nxt are copied to `held`, a ring indexed by sequence number that is
 * as large as the window can be; `hole` lists, in order, the stretches of it that are filled. The
 * window never shrinks, since the consumer takes everything at once.
 *
 * Acknowledging: at once for anything out of order, else after `ack_every` full segments, else
 * when no further frame waits (tcp_idle). An ACK that finds the transmitter full stays due.
 *
 * Sending: the request stays where the caller has it; snd_una counts from its start. One timer:
 * it retransmits what is oldest (go-back-n) and doubles, RFC 6298.
 */
#include "tcp.h"

#include "board.h"
#include "console.h"
#include "lib.h"

enum {
    FIN = 1, SYN = 2, RST = 4, PSH = 8, ACK = 16,
    HEADER_LEN = 20, SYN_OPTIONS_LEN = 8,
    OPTION_END = 0, OPTION_NOP = 1, OPTION_MSS = 2, OPTION_WSCALE = 3,
    MSS_DEFAULT = 536,          /* bytes, RFC 9293 §3.7.1 */
    MSS_MIN = 88,               /* a peer that offers less gets this */
    WSCALE_MAX = 14,            /* RFC 7323 §2.3 */
    RTO_INITIAL = SECOND, RTO_MIN = SECOND / 5, RTO_MAX = 16 * SECOND,
    RETRIES_MAX = 7,
    PROGRESS_TIMEOUT = 30 * SECOND,     /* without a new byte */
    CLOSE_TIMEOUT = 5 * SECOND,
};

enum state { CLOSED, SYN_SENT, ESTABLISHED, FAILED };

struct stretch {
    uint32_t start, end;        /* sequence numbers, end excluded */
};

static struct {
    enum state state;
    enum status failure;        /* why FAILED */
    struct peer peer;
    uint16_t local_port, remote_port;

    const uint8_t *request;
    uint32_t request_len;
    bool fin_wanted, fin_acked;
    uint32_t iss, snd_una, snd_nxt, snd_max, snd_wnd, mss;
    uint8_t snd_wscale, rcv_wscale;

    uint32_t rcv_nxt, rcv_wnd;
    bool fin_known, fin_received;
    uint32_t fin_seq;           /* the peer's FIN, once a segment with it was seen */
    struct stretch hole[TCP_HOLES];
    uint32_t holes;
    tcp_consumer *consume;
    bool satisfied;

    uint32_t unacked_octets;    /* taken in order since the last ACK went out */
    bool ack_due, ack_now;

    bool timer_runs;
    uint32_t timer_at, rto, retries;
    bool measuring;             /* a round trip, of measured_seq sent at measured_at; Karn's rule */
    uint32_t measured_seq, measured_at, srtt, rttvar;
    uint32_t progress_at;       /* when something new came last */
} c;

static uint8_t held[TCP_WINDOW_MAX];

/* -- sending --------------------------------------------------------------------------------- */

static uint32_t request_start(void) { return c.iss + 1; }
static uint32_t fin_start(void) { return request_start() + c.request_len; }

/* Header in front of `len` bytes that lie behind it already. Every segment carries the ACK. */
static void send_segment(uint8_t *header, uint32_t seq, uint8_t flags, uint32_t options_len, uint32_t len)
{
    uint32_t window = flags & SYN ? min32(c.rcv_wnd, 0xffff) : c.rcv_wnd >> c.rcv_wscale;
    uint32_t segment_len = HEADER_LEN + options_len + len;
    put16(header, c.local_port);
    put16(header + 2, c.remote_port);
    put32(header + 4, seq);
    put32(header + 8, flags & ACK ? c.rcv_nxt : 0);
    header[12] = (uint8_t)((HEADER_LEN + options_len) << 2);
    header[13] = flags;
    put16(header + 14, window);
    put32(header + 16, 0);
    uint32_t sum = pseudo_header_sum(&net.address, &c.peer.address, PROTOCOL_TCP, segment_len);
    put16(header + 16, checksum(sum_octets(header, segment_len, sum)));
    ip_send(&c.peer, PROTOCOL_TCP, segment_len);
    if (flags & ACK) {
        c.ack_due = c.ack_now = false;
        c.unacked_octets = 0;
        RESULT->tcp_acks++;
    }
}

static void start_timer(void)
{
    c.timer_runs = true;
    c.timer_at = now + c.rto;
}

static void account_sent(uint32_t seq_end)
{
    c.snd_nxt = seq_end;
    if (before(c.snd_max, seq_end)) {
        c.snd_max = seq_end;
        if (!c.measuring)
            c.measuring = true, c.measured_seq = seq_end, c.measured_at = now;
    } else {
        RESULT->tcp_retransmits++;
        c.measuring = false;
    }
    if (!c.timer_runs)
        start_timer();
}

static bool send_syn(void)
{
    uint8_t *header = ip_begin();
    if (!header)
        return false;
    uint8_t *option = header + HEADER_LEN;
    put32(option, OPTION_MSS << 24 | 4 << 16 | (net.mtu - ip_header_len() - HEADER_LEN));
    put32(option + 4, OPTION_NOP << 24 | OPTION_WSCALE << 16 | 3 << 8 | c.rcv_wscale);
    send_segment(header, c.iss, SYN, SYN_OPTIONS_LEN, 0);
    account_sent(c.iss + 1);
    return true;
}

/* One segment of the request, or its FIN, from snd_nxt on. False: nothing to send, or no room. */
static bool send_next(void)
{
    uint32_t sent = c.snd_nxt - request_start();
    uint32_t in_flight = c.snd_nxt - c.snd_una;
    uint32_t left = sent < c.request_len ? c.request_len - sent : 0;
    uint32_t room = c.snd_wnd > in_flight ? c.snd_wnd - in_flight : 0;
    uint32_t len = min32(min32(left, c.mss), room);
    bool fin = c.fin_wanted && len == left && at_or_before(c.snd_nxt, fin_start());
    uint8_t *header = len || fin ? ip_begin() : 0;
    if (!header)
        return false;
    if (len)
        memcpy(header + HEADER_LEN, c.request + sent, len);
    uint8_t flags = (uint8_t)(ACK | (fin ? FIN : 0) | (len && len == left ? PSH : 0));
    send_segment(header, c.snd_nxt, flags, 0, len);
    account_sent(c.snd_nxt + len + fin);
    return true;
}

static bool send_ack(void)
{
    uint8_t *header = ip_begin();
    if (header)
        send_segment(header, c.snd_nxt, ACK, 0, 0);
    return header != 0;
}

static void output(void)
{
    if (c.state != ESTABLISHED)
        return;
    while (send_next())
        ;
    if (c.ack_now)
        send_ack();
}

static void send_reset(void)
{
    uint8_t *header = ip_begin();
    if (header)
        send_segment(header, c.snd_nxt, RST | ACK, 0, 0);
}

/* A closed window is probed with the byte in front of it, which the peer has and must answer. */
static void retransmit(void)
{
    if (c.retries++ >= RETRIES_MAX) {
        c.state = FAILED;
        c.failure = STATUS_TIMED_OUT;
        return;
    }
    c.rto = min32(2 * c.rto, RTO_MAX);
    c.measuring = false;
    start_timer();
    if (c.state == SYN_SENT) {
        send_syn();
    } else if (c.snd_una == c.snd_max || !c.snd_wnd) {
        uint8_t *header = ip_begin();
        if (header)
            send_segment(header, c.snd_una - 1, ACK, 0, 0);
    } else {
        c.snd_nxt = c.snd_una;
        output();
    }
}

/* -- receiving ------------------------------------------------------------------------------- */

static void fail(enum status why)
{
    c.state = FAILED;
    c.failure = why;
}

/* MSS and window scale of a SYN. The scale holds only if both sides sent it. */
static void take_options(const uint8_t *option, const uint8_t *end)
{
    bool scaled = false;
    c.mss = MSS_DEFAULT;
    while (option < end && *option != OPTION_END) {
        if (*option == OPTION_NOP) {
            option++;
            continue;
        }
        if (option + 2 > end || option[1] < 2 || option + option[1] > end)
            break;
        if (*option == OPTION_MSS && option[1] == 4)
            c.mss = max32(get16(option + 2), MSS_MIN);
        if (*option == OPTION_WSCALE && option[1] == 3) {
            c.snd_wscale = (uint8_t)min32(option[2], WSCALE_MAX);
            scaled = true;
        }
        option += option[1];
    }
    c.mss = min32(c.mss, net.mtu - ip_header_len() - HEADER_LEN);
    if (!scaled) {
        c.snd_wscale = c.rcv_wscale = 0;
        c.rcv_wnd = min32(c.rcv_wnd, 0xffff);
    }
}

/* RFC 6298 §2, in microseconds. */
static void measure_round_trip(void)
{
    uint32_t rtt = now - c.measured_at;
    uint32_t off = rtt > c.srtt ? rtt - c.srtt : c.srtt - rtt;
    if (!c.srtt) {
        c.srtt = rtt, c.rttvar = rtt / 2;
    } else {
        c.rttvar = c.rttvar - c.rttvar / 4 + off / 4;
        c.srtt = c.srtt - c.srtt / 8 + rtt / 8;
    }
    c.rto = min32(max32(c.srtt + 4 * c.rttvar, RTO_MIN), RTO_MAX);
    c.measuring = false;
}

static void handle_ack(uint32_t ack, uint32_t window)
{
    if (!at_or_before(c.snd_una, ack) || !at_or_before(ack, c.snd_max))
        return;
    c.snd_wnd = window << c.snd_wscale;
    c.retries = 0;      /* the peer is there */
    if (c.measuring && at_or_before(c.measured_seq, ack))
        measure_round_trip();
    if (ack != c.snd_una) {
        c.snd_una = ack;
        c.progress_at = now;
        if (before(c.snd_nxt, ack))
            c.snd_nxt = ack;
        c.timer_runs = false;
    }
    c.fin_acked = c.fin_wanted && ack == fin_start() + 1;
    bool outstanding = c.snd_una != c.snd_max;
    bool blocked = !c.snd_wnd && before(c.snd_nxt, fin_start());
    if ((outstanding || blocked) && !c.timer_runs)
        start_timer();
}

static void handle_syn_sent(const uint8_t *segment, uint32_t header_len)
{
    uint8_t flags = segment[13];
    uint32_t ack = get32(segment + 8);
    if (!(flags & ACK) || ack != c.iss + 1)
        return;
    if (flags & RST) {
        fail(STATUS_REFUSED);
        return;
    }
    if (!(flags & SYN))
        return;
    c.rcv_nxt = get32(segment + 4) + 1;
    take_options(segment + HEADER_LEN, segment + header_len);
    c.state = ESTABLISHED;
    handle_ack(ack, 0);
    c.snd_wnd = get16(segment + 14);    /* of a SYN: not scaled */
    c.ack_now = true;
}

/* Keep [seq, seq + len) for later: copy it, and enter it in the list, merged with what it touches. */
static void hold(uint32_t seq, const uint8_t *data, uint32_t len)
{
    struct stretch new = {seq, seq + len};
    uint32_t first = 0;
    while (first < c.holes && before(c.hole[first].end, new.start))
        first++;
    uint32_t last = first;
    for (; last < c.holes && at_or_before(c.hole[last].start, new.end); last++) {
        if (before(c.hole[last].start, new.start))
            new.start = c.hole[last].start;
        if (before(new.end, c.hole[last].end))
            new.end = c.hole[last].end;
    }
    if (first == last && c.holes == TCP_HOLES)
        return;         /* no entry left: the peer sends it again */
    for (uint32_t i = 0; i < len; i++)
        held[(seq + i) % TCP_WINDOW_MAX] = data[i];
    memmove(&c.hole[first + 1], &c.hole[last], (c.holes - last) * sizeof c.hole[0]);
    c.hole[first] = new;
    c.holes += 1 - (last - first);
}

static void deliver(const uint8_t *data, uint32_t len)
{
    c.rcv_nxt += len;
    c.unacked_octets += len;
    c.progress_at = now;
    c.ack_due = true;
    if (!c.satisfied && !c.consume(data, len))
        c.satisfied = true;
}

/* What was held and is in order now. */
static void deliver_held(void)
{
    while (c.holes && at_or_before(c.hole[0].start, c.rcv_nxt)) {
        while (before(c.rcv_nxt, c.hole[0].end)) {
            uint32_t from = c.rcv_nxt % TCP_WINDOW_MAX;
            deliver(held + from, min32(c.hole[0].end - c.rcv_nxt, TCP_WINDOW_MAX - from));
        }
        c.holes--;
        memmove(&c.hole[0], &c.hole[1], c.holes * sizeof c.hole[0]);
    }
}

static void handle_data(uint32_t seq, const uint8_t *data, uint32_t len)
{
    if (before(seq, c.rcv_nxt)) {
        uint32_t known = min32(c.rcv_nxt - seq, len);
        seq += known, data += known, len -= known;
        c.ack_now = true;       /* the peer sent again what we have: tell it */
    }
    if (!len)
        return;
    if (seq - c.rcv_nxt >= c.rcv_wnd) {
        c.ack_now = true;
        return;
    }
    len = min32(len, c.rcv_nxt + c.rcv_wnd - seq);
    if (seq == c.rcv_nxt) {
        deliver(data, len);
        if (c.holes) {
            deliver_held();
            c.ack_now = true;
        }
    } else {
        hold(seq, data, len);
        RESULT->tcp_out_of_order++;
        c.ack_now = true;
    }
    if (c.unacked_octets >= PARAMETERS->ack_every * c.mss)
        c.ack_now = true;
}

static void handle_fin(void)
{
    if (!c.fin_known || c.fin_received || c.rcv_nxt != c.fin_seq)
        return;
    c.rcv_nxt++;
    c.fin_received = true;
    c.ack_now = true;
    c.progress_at = now;
}

/* RFC 9293 §3.10.7.4; RFC 5961 for RST and SYN: an exact RST counts, anything near it is asked. */
static void handle_established(const uint8_t *segment, uint32_t header_len, uint32_t len)
{
    uint8_t flags = segment[13];
    uint32_t seq = get32(segment + 4);
    if (flags & RST) {
        if (seq == c.rcv_nxt)
            fail(STATUS_RESET);
        else
            c.ack_now = true;
        return;
    }
    if (flags & SYN || !(flags & ACK)) {
        c.ack_now = true;
        return;
    }
    if (!len && !(flags & FIN) && seq != c.rcv_nxt)
        c.ack_now = true;       /* a keepalive or a window probe */
    handle_ack(get32(segment + 8), get16(segment + 14));
    if (flags & FIN && !c.fin_known && seq + len - c.rcv_nxt <= c.rcv_wnd)
        c.fin_known = true, c.fin_seq = seq + len;
    else if (flags & FIN && c.fin_received)
        c.ack_now = true;
    handle_data(seq, segment + header_len, len);
    handle_fin();
}

/* Nobody listens here: RFC 9293 §3.10.7.1. */
static void refuse(const struct peer *to, const uint8_t *segment, uint32_t len)
{
    uint8_t flags = segment[13];
    uint8_t *header = flags & RST ? 0 : ip_begin();
    if (!header)
        return;
    bool acks = flags & ACK;
    put16(header, get16(segment + 2));
    put16(header + 2, get16(segment));
    put32(header + 4, acks ? get32(segment + 8) : 0);
    put32(header + 8, acks ? 0 : get32(segment + 4) + len + (flags & SYN ? 1 : 0) + (flags & FIN));
    put16(header + 12, HEADER_LEN << 10 | RST | (acks ? 0 : ACK));
    memset(header + 14, 0, 6);
    uint32_t sum = pseudo_header_sum(&net.address, &to->address, PROTOCOL_TCP, HEADER_LEN);
    put16(header + 16, checksum(sum_octets(header, HEADER_LEN, sum)));
    ip_send(to, PROTOCOL_TCP, HEADER_LEN);
}

static bool is_ours(const struct address *from, const uint8_t *segment)
{
    return c.state != CLOSED && c.state != FAILED && same(from, &c.peer.address) &&
           get16(segment) == c.remote_port && get16(segment + 2) == c.local_port;
}

static void tcp_input(const struct address *from, const uint8_t *mac, const uint8_t *segment, uint32_t len)
{
    uint32_t header_len = len < HEADER_LEN ? 0 : (segment[12] >> 4) * 4u;
    if (header_len < HEADER_LEN || header_len > len)
        return;
    uint32_t sum = pseudo_header_sum(from, &net.address, PROTOCOL_TCP, len);
    if (checksum(sum_octets(segment, len, sum))) {
        RESULT->tcp_bad_checksums++;
        return;
    }
    RESULT->tcp_segments++;
    if (!is_ours(from, segment)) {
        struct peer stranger = {*from, {0}};
        memcpy(stranger.mac, mac, 6);
        refuse(&stranger, segment, len - header_len);
        return;
    }
    if (c.state == SYN_SENT)
        handle_syn_sent(segment, header_len);
    else
        handle_established(segment, header_len, len - header_len);
    output();
}

static void tcp_unreachable(const struct address *to, uint16_t from_port, uint16_t to_port)
{
    if (c.state == SYN_SENT && same(to, &c.peer.address) && from_port == c.local_port &&
        to_port == c.remote_port)
        fail(STATUS_UNREACHABLE);
}

static uint32_t tcp_idle(uint32_t deadline)
{
    if (c.state == CLOSED || c.state == FAILED)
        return deadline;
    output();
    if (c.timer_runs && c.snd_una == c.snd_max && c.snd_wnd)
        c.timer_runs = false;
    if (c.timer_runs && at_or_before(c.timer_at, now))
        retransmit();
    if (c.ack_due && !send_ack())
        return now;
    return c.timer_runs && before(c.timer_at, deadline) ? c.timer_at : deadline;
}

const struct transport tcp_transport = {tcp_input, tcp_unreachable, tcp_idle};

/* -- what a program calls -------------------------------------------------------------------- */

static void set_receive_window(void)
{
    c.rcv_wscale = 0;
    c.rcv_wnd = min32(PARAMETERS->window, TCP_WINDOW_MAX);
    while (c.rcv_wnd >> c.rcv_wscale > 0xffff)
        c.rcv_wscale++;
    c.rcv_wnd &= -1u << c.rcv_wscale;   /* what the peer will read */
}

enum status tcp_connect(const struct peer *peer, uint16_t port)
{
    memset(&c, 0, sizeof c);
    c.peer = *peer;
    c.remote_port = port;
    c.local_port = (uint16_t)(49152 + random32() % 16384);
    c.iss = c.snd_una = c.snd_nxt = c.snd_max = random32();
    c.rto = RTO_INITIAL;
    set_receive_window();
    now = clock_us();
    c.state = SYN_SENT;
    while (!send_syn())
        net_step(now + SECOND / 10);
    while (c.state == SYN_SENT)
        net_step(now + SECOND);
    return c.state == ESTABLISHED ? STATUS_OK : c.failure;
}

enum status tcp_exchange(const void *request, uint32_t len, tcp_consumer *consume)
{
    c.request = request;
    c.request_len = len;
    c.consume = consume;
    c.progress_at = now;
    output();
    while (c.state == ESTABLISHED && !c.satisfied && !c.fin_received) {
        net_step(c.progress_at + PROGRESS_TIMEOUT);
        if (at_or_before(c.progress_at + PROGRESS_TIMEOUT, now))
            return STATUS_TIMED_OUT;
    }
    return c.state == ESTABLISHED ? STATUS_OK : c.failure;
}

void tcp_close(void)
{
    uint32_t deadline = now + CLOSE_TIMEOUT;
    c.fin_wanted = c.satisfied = true;
    output();
    while (c.state == ESTABLISHED && !(c.fin_acked && c.fin_received) && before(now, deadline))
        net_step(deadline);
    tcp_idle(now);      /* the last ACK */
    c.state = CLOSED;
}

void tcp_abort(void)
{
    if (c.state == ESTABLISHED)
        send_reset();
    c.state = CLOSED;
}
