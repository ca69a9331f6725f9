/* TCP, sending: segments, the timer, what may be sent now. */
#include "net.h"

#define TIMEOUT_MIN_NS (NS_PER_S / 5) /* as Linux; far above a live update's blackout */
#define TIMEOUT_MAX_NS (8 * NS_PER_S) /* an idle test peer comes back soon */
#define RETRIES_MAX 12
#define MSS_OPTION_BYTES 4
#define MSS_OFFERED_4 1460
#define MSS_OFFERED_6 1440

static void ip6_header(struct net *net, u8 *frame, const struct tcp *tcp, u32 length)
{
    struct ethernet *ethernet = (struct ethernet *)frame;
    struct ip6 *ip = (struct ip6 *)(ethernet + 1);
    ethernet->to = tcp->mac;
    ethernet->from = net->mac;
    ethernet->type = TYPE_IP6;
    ip->version_flow = 0x60;
    ip->length = net16(length);
    ip->protocol = PROTOCOL_TCP;
    ip->hops = 64;
    ip->from = tcp->local;
    ip->to = tcp->peer;
}

/* One segment with `length` bytes of the stream from sequence number `sequence` on. It carries
 * the newest acknowledgement unless it is a plain RST. */
int tcp_send(struct net *net, struct tcp *tcp, u8 flags, u32 sequence, u32 length)
{
    u8 *frame = link_buffer(net);
    if (!frame)
        return 0;
    u32 options = flags & TCP_SYN ? MSS_OPTION_BYTES : 0;
    u32 size = sizeof(struct tcp_header) + options + length, before = sizeof(struct ethernet);
    if (tcp->family == 4) {
        before += sizeof(struct ip4);
        ip4_header(net, frame, &tcp->mac, tcp->peer.word[1] >> 32, PROTOCOL_TCP, size);
    } else {
        before += sizeof(struct ip6);
        ip6_header(net, frame, tcp, size);
    }
    struct tcp_header *header = (struct tcp_header *)(frame + before);
    u32 window = tcp->state ? stream_window(tcp) : 0;
    header->from = tcp->local_port;
    header->to = tcp->peer_port;
    header->sequence = net32(sequence);
    header->acknowledgement = flags & TCP_ACK ? net32(tcp->rcv_nxt) : 0;
    header->size = (sizeof *header + options) / 4 << 4;
    header->flags = flags;
    header->window = net16(window);
    header->checksum = 0;
    header->urgent = 0;
    if (options) {
        u32 mss = tcp->family == 4 ? MSS_OFFERED_4 : MSS_OFFERED_6;
        ((struct word32 *)(header + 1))->value = net32(2u << 24 | MSS_OPTION_BYTES << 16 | mss);
    }
    if (length)
        stream_fill(net, tcp, tcp->una_offset + (sequence - tcp->una), (u8 *)(header + 1), length);
    u64 sum = sum_address(sum_address(net32(size + PROTOCOL_TCP), &tcp->local), &tcp->peer);
    header->checksum = sum_finish(sum_bytes(sum, (u8 *)header, size));
    link_send(net, frame, before + size);
    if (flags & TCP_ACK) {
        tcp->ack_due = 0;
        tcp->advertised = tcp->rcv_nxt + window;
    }
    return 1;
}

void tcp_restart_timer(struct net *net, struct tcp *tcp)
{
    u64 timeout = tcp->timeout_ns;
    if (tcp->smooth_ns) {
        timeout = tcp->smooth_ns + 4 * tcp->variation_ns;
        if (timeout < TIMEOUT_MIN_NS)
            timeout = TIMEOUT_MIN_NS;
    }
    timeout <<= tcp->retries < 6 ? tcp->retries : 6;
    if (timeout > TIMEOUT_MAX_NS)
        timeout = TIMEOUT_MAX_NS;
    tcp->timer_ns = tcp->max != tcp->una ? net->now + timeout : 0;
    if (tcp->timer_ns)
        net_wake_at(net, tcp->timer_ns);
}

void tcp_timer(struct net *net, struct tcp *tcp)
{
    u32 flight = tcp->max - tcp->una;
    if (++tcp->retries > RETRIES_MAX) {
        tcp_forget(net, tcp, 1);
        return;
    }
    if (flight) {
        tcp->threshold = flight / 2 > 2 * tcp->mss ? flight / 2 : 2 * tcp->mss;
        tcp->congestion = tcp->mss;
        net->report->tcp_retransmits++;
    }
    tcp->recovering = 0;
    tcp->duplicate_acks = 0;
    tcp->timed_at_ns = 0;
    tcp->nxt = tcp->una;
    if (!tcp->window) /* probe: one byte against a closed window (RFC 9293, 3.8.6.1) */
        tcp->window = 1;
    tcp->timer_ns = net->now + TIMEOUT_MIN_NS; /* until the segment that follows sets it */
    tcp_ready(net, tcp);
}

static void sent(struct net *net, struct tcp *tcp, u32 advance)
{
    u32 from = tcp->nxt;
    tcp->nxt += advance;
    if ((int)(tcp->nxt - tcp->max) > 0) {
        tcp->max = tcp->nxt;
        if (!tcp->timed_at_ns) {
            tcp->timed = from;
            tcp->timed_at_ns = net->now;
        }
    }
    if (from == tcp->una || !tcp->timer_ns)
        tcp_restart_timer(net, tcp);
    if (tcp->recovering && from == tcp->una)
        tcp->nxt = tcp->max; /* only the hole is sent again; the peer has the rest */
}

static int send_syn(struct net *net, struct tcp *tcp)
{
    if (tcp->nxt != tcp->una)
        return 0;
    u8 flags = tcp->state == TCP_SYN_SENT ? TCP_SYN : TCP_SYN | TCP_ACK;
    tcp_send(net, tcp, flags, tcp->una, 0);
    sent(net, tcp, 1);
    return 0;
}

static u32 allowed(const struct tcp *tcp, u32 flight)
{
    u32 window = tcp->window < tcp->congestion ? tcp->window : tcp->congestion;
    if (tcp->recovering && !flight)
        return tcp->mss; /* the hole itself */
    return window > flight ? window - flight : 0;
}

/* A window that was closed has opened enough to say so. */
static int window_news(const struct tcp *tcp)
{
    u32 offered = tcp->advertised - tcp->rcv_nxt, window = stream_window(tcp);
    return offered < ECHO_RING_BYTES / 4 && window >= ECHO_RING_BYTES / 2;
}

/* Send one segment if one may be sent; 1: there may be more. */
int tcp_output(struct net *net, struct tcp *tcp)
{
    if (tcp->state == TCP_SYN_SENT || tcp->state == TCP_SYN_RECEIVED)
        return send_syn(net, tcp);
    if (tcp->state == TCP_CLOSED)
        return 0;
    u32 flight = tcp->nxt - tcp->una;
    u64 at = tcp->una_offset + flight;
    u64 left = at < tcp->out_end ? tcp->out_end - at : 0;
    u32 size = allowed(tcp, flight);
    int last = tcp->peer_finished && at <= tcp->out_end;
    if (size > left)
        size = left;
    if (size > tcp->mss)
        size = tcp->mss;
    if (left && !size && !flight && !tcp->timer_ns) { /* closed window: the timer will probe */
        tcp->timer_ns = net->now + TIMEOUT_MIN_NS;
        net_wake_at(net, tcp->timer_ns);
    }
    if (size || (last && !left)) {
        int fin = last && size == left;
        u8 flags = TCP_ACK | (fin ? TCP_FIN : 0) | (size ? TCP_PSH : 0);
        if (!tcp_send(net, tcp, flags, tcp->nxt, size))
            return 1; /* later */
        sent(net, tcp, size + fin);
        return !fin;
    }
    if (tcp->ack_due || window_news(tcp))
        return !tcp_send(net, tcp, TCP_ACK, tcp->nxt, 0);
    return 0;
}
