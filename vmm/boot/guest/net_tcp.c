/* TCP (RFC 9293), receiving: connections, acknowledgements, data in order.
 *
 * Of what comes too early one piece is kept; the rest is dropped, and the peer sends it again.
 * No SACK, timestamps or window scaling: none is needed for correctness. */
#include "net.h"

#define MSS_DEFAULT 536 /* RFC 9293, 3.7.1 */
#define MSS_DEFAULT_6 1220
#define INITIAL_SEGMENTS 10 /* RFC 6928 */
#define TIMEOUT_START_NS NS_PER_S
#define OPTION_END 0
#define OPTION_NOP 1
#define OPTION_MSS 2
#define FAST_RETRANSMIT_ACKS 3
#define PLAUSIBLE_GAP 0x10000u /* the largest window: `gap` + size cannot overflow */

static struct tcp *find(struct net *net, const struct tcp *key)
{
    for (u32 i = 0; i < NET_TCPS; i++) {
        struct tcp *tcp = &net->tcps[i];
        if (tcp->state && tcp->peer_port == key->peer_port && tcp->local_port == key->local_port &&
            same_address(&tcp->peer, &key->peer) && same_address(&tcp->local, &key->local))
            return tcp;
    }
    return 0;
}

static struct tcp *unused(struct net *net)
{
    for (u32 i = 0; i < NET_TCPS; i++)
        if (!net->tcps[i].state)
            return &net->tcps[i];
    return 0;
}

static void read_mss(struct net *net, struct tcp *tcp, const struct tcp_header *header)
{
    const u8 *at = (const u8 *)(header + 1), *end = (const u8 *)header + (header->size >> 4) * 4;
    tcp->mss = tcp->family == 4 ? MSS_DEFAULT : MSS_DEFAULT_6;
    while (at < end && *at != OPTION_END) {
        if (*at == OPTION_NOP) {
            at++;
            continue;
        }
        if (at + 1 >= end || at[1] < 2 || at + at[1] > end)
            break;
        if (*at == OPTION_MSS && at[1] == 4)
            tcp->mss = net16(((const struct word16 *)(at + 2))->value);
        at += at[1];
    }
    u32 limit = net->mss_limit - (tcp->family == 6 ? 20 : 0); /* its header is so much longer */
    if (tcp->mss > limit)
        tcp->mss = limit;
    if (tcp->mss < 8)
        tcp->mss = 8;
    tcp->congestion = INITIAL_SEGMENTS * tcp->mss;
}

static void begin(struct net *net, struct tcp *tcp, u8 state)
{
    net->sequence_seed += 0x10001 + (u32)(net->now >> 6);
    tcp->state = state;
    tcp->una = tcp->nxt = tcp->max = net->sequence_seed;
    tcp->threshold = ~0u;
    tcp->timeout_ns = TIMEOUT_START_NS;
    stream_open(tcp);
    tcp_ready(net, tcp);
}

static int is_service(u32 port)
{
    return port == PORT_ECHO || port == PORT_DISCARD || port == PORT_SOURCE;
}

static void accept(struct net *net, const struct tcp *key, const struct tcp_header *header)
{
    struct tcp *tcp = unused(net);
    copy_bytes((u8 *)tcp, (const u8 *)key, sizeof *tcp);
    tcp->service = net16(tcp->local_port);
    tcp->rcv_nxt = net32(header->sequence) + 1;
    tcp->window = net16(header->window);
    read_mss(net, tcp, header);
    begin(net, tcp, TCP_SYN_RECEIVED);
}

void tcp_connect(struct net *net, u32 index)
{
    struct active *active = &net->active[index];
    struct tcp *tcp = unused(net);
    if (!tcp)
        return;
    zero_bytes(tcp, sizeof *tcp);
    tcp->family = 4;
    tcp->active = index + 1;
    tcp->service = PORT_SOURCE;
    tcp->local = address4(net->ip);
    tcp->peer = address4(active->ip);
    tcp->peer_port = active->port;
    tcp->local_port = net16(net->next_port);
    net->next_port = net->next_port == 0xffff ? 49152 : net->next_port + 1;
    tcp->mac = active->mac;
    tcp->mss = MSS_DEFAULT;
    active->connected = 1;
    begin(net, tcp, TCP_SYN_SENT);
}

void tcp_forget(struct net *net, struct tcp *tcp, int reset)
{
    if (reset)
        net->report->tcp_resets++;
    else
        net->report->tcp_closed++;
    if (tcp->active) {
        net->active[tcp->active - 1].connected = 0;
        net_wake_at(net, net->active[tcp->active - 1].due_ns);
    }
    net->ready &= ~(1u << tcp_index(net, tcp));
    tcp->state = TCP_CLOSED;
    tcp->timer_ns = 0;
}

/* Answer a segment that belongs to no connection (RFC 9293, 3.10.7.1). */
static void refuse(struct net *net, struct tcp *key, const struct tcp_header *header, u32 length)
{
    u8 flags = header->flags;
    if (flags & TCP_RST)
        return;
    if (flags & TCP_ACK) {
        tcp_send(net, key, TCP_RST, net32(header->acknowledgement), 0);
        return;
    }
    key->rcv_nxt = net32(header->sequence) + length + !!(flags & TCP_SYN) + !!(flags & TCP_FIN);
    tcp_send(net, key, TCP_RST | TCP_ACK, 0, 0);
}

/* The retransmission timeout follows the round trips (RFC 6298). */
static void measure(struct net *net, struct tcp *tcp, u32 acknowledged)
{
    if (!tcp->timed_at_ns || (int)(acknowledged - tcp->timed) <= 0)
        return;
    u64 trip = net->now - tcp->timed_at_ns;
    tcp->timed_at_ns = 0;
    if (!tcp->smooth_ns) {
        tcp->smooth_ns = trip;
        tcp->variation_ns = trip / 2;
    } else {
        u64 error = trip > tcp->smooth_ns ? trip - tcp->smooth_ns : tcp->smooth_ns - trip;
        tcp->variation_ns += error / 4 - tcp->variation_ns / 4;
        tcp->smooth_ns += trip / 8 - tcp->smooth_ns / 8;
    }
}

static void grow(struct tcp *tcp, u32 acknowledged)
{
    if (tcp->congestion < tcp->threshold)
        tcp->congestion += acknowledged < tcp->mss ? acknowledged : tcp->mss;
    else
        tcp->congestion += tcp->mss * tcp->mss / tcp->congestion + 1;
    if (tcp->congestion > 0x40000) /* more than any window without scaling */
        tcp->congestion = 0x40000;
}

static void resend_first(struct net *net, struct tcp *tcp)
{
    tcp->nxt = tcp->una;
    tcp->timed_at_ns = 0;
    net->report->tcp_retransmits++;
    tcp_ready(net, tcp);
}

static void advance(struct net *net, struct tcp *tcp, u32 acknowledged)
{
    u32 size = acknowledged - tcp->una;
    u64 data = tcp->out_end - tcp->una_offset; /* the rest of `size` is our FIN */
    measure(net, tcp, acknowledged);
    tcp->una_offset += size < data ? size : data;
    net->report->tcp_bytes_out += size < data ? size : data;
    tcp->una = acknowledged;
    if ((int)(tcp->nxt - tcp->una) < 0)
        tcp->nxt = tcp->una;
    tcp->retries = tcp->duplicate_acks = 0;
    grow(tcp, size);
    if (tcp->recovering) { /* NewReno: each partial acknowledgement shows the next hole */
        if ((int)(acknowledged - tcp->recover) >= 0)
            tcp->recovering = 0;
        else
            resend_first(net, tcp);
    }
    tcp_restart_timer(net, tcp);
    tcp_ready(net, tcp);
    if (size > data && tcp->peer_finished)
        tcp_forget(net, tcp, 0);
}

static void duplicate_ack(struct net *net, struct tcp *tcp)
{
    if (tcp->recovering || ++tcp->duplicate_acks < FAST_RETRANSMIT_ACKS)
        return;
    u32 flight = tcp->max - tcp->una;
    tcp->threshold = flight / 2 > 2 * tcp->mss ? flight / 2 : 2 * tcp->mss;
    tcp->congestion = tcp->threshold;
    tcp->recovering = 1;
    tcp->recover = tcp->max;
    tcp->duplicate_acks = 0;
    resend_first(net, tcp);
}

/* 0: the connection is gone or the segment is not acceptable. */
static int acknowledge(struct net *net, struct tcp *tcp, const struct tcp_header *header, u32 data)
{
    u32 acknowledged = net32(header->acknowledgement), window = net16(header->window);
    if ((int)(acknowledged - tcp->max) > 0) {
        tcp->ack_due = 1;
        return 0;
    }
    if ((int)(acknowledged - tcp->una) > 0) {
        tcp->window = window;
        advance(net, tcp, acknowledged);
    } else if (acknowledged == tcp->una) {
        if (!data && window == tcp->window && tcp->max != tcp->una && !(header->flags & TCP_FIN))
            duplicate_ack(net, tcp);
        if (!window)
            tcp->retries = 0; /* it lives, it only wants nothing now */
        if (window && tcp->window <= 1)
            tcp->nxt = tcp->una; /* the probe of the closed window was not taken */
        tcp->window = window;
    }
    return tcp->state != TCP_CLOSED;
}

static void finish(struct tcp *tcp)
{
    tcp->rcv_nxt++;
    tcp->peer_finished = 1;
    tcp->ack_due = 1;
    tcp->state = TCP_LAST_ACK;
    stream_peer_finished(tcp);
}

/* A segment that begins `gap` bytes after what we expect. */
static void keep_ahead(struct net *net, struct tcp *tcp, u32 gap, const u8 *data, u32 size)
{
    u64 from = tcp->in_offset + gap, end = from + size;
    net->report->tcp_out_of_order++;
    if (!tcp->in_offset || gap > PLAUSIBLE_GAP || gap + size > stream_window(tcp))
        return;
    if (tcp->ahead_end <= tcp->in_offset) {
        tcp->ahead_from = from;
        tcp->ahead_end = end;
    } else if (from > tcp->ahead_end || end < tcp->ahead_from)
        return; /* a second piece */
    stream_place(net, tcp, from, data, size);
    if (from < tcp->ahead_from)
        tcp->ahead_from = from;
    if (end > tcp->ahead_end)
        tcp->ahead_end = end;
}

static void take_data(struct net *net, struct tcp *tcp, const struct tcp_header *header,
                      const u8 *data, u32 size)
{
    u32 sequence = net32(header->sequence), known = tcp->rcv_nxt - sequence;
    int fin = header->flags & TCP_FIN;
    if (!size && !fin) {
        tcp->ack_due |= sequence != tcp->rcv_nxt; /* a keep-alive probe */
        return;
    }
    tcp->ack_due = 1;
    if (known > size) { /* begins after what we expect, or ends before it */
        if ((int)known < 0 && size && !tcp->peer_finished)
            keep_ahead(net, tcp, -known, data, size);
        tcp_send(net, tcp, TCP_ACK, tcp->max, 0); /* one for each: the peer counts them */
        return;
    }
    if (tcp->peer_finished)
        return;
    data += known;
    size -= known;
    u32 room = stream_window(tcp);
    if (size > room) {
        size = room;
        fin = 0;
    }
    if (size) {
        stream_place(net, tcp, tcp->in_offset, data, size);
        stream_advance(net, tcp, size);
        if (tcp->ahead_from <= tcp->in_offset && tcp->ahead_end > tcp->in_offset)
            stream_advance(net, tcp, tcp->ahead_end - tcp->in_offset);
    }
    if (fin)
        finish(tcp);
}

/* Our SYN was answered, or the answer to our SYN+ACK came. */
static int open(struct net *net, struct tcp *tcp, const struct tcp_header *header)
{
    u32 acknowledged = net32(header->acknowledgement);
    if (!(header->flags & TCP_ACK))
        return 0;
    if (acknowledged != tcp->una + 1) {
        tcp_send(net, tcp, TCP_RST, acknowledged, 0);
        return 0;
    }
    if (tcp->state == TCP_SYN_SENT) {
        if (!(header->flags & TCP_SYN))
            return 0;
        tcp->rcv_nxt = net32(header->sequence) + 1;
        tcp->ack_due = 1;
        read_mss(net, tcp, header);
    }
    measure(net, tcp, acknowledged);
    tcp->una = tcp->nxt = tcp->max = acknowledged;
    tcp->window = net16(header->window);
    tcp->state = TCP_OPEN;
    tcp->retries = 0;
    tcp->timer_ns = 0;
    net->report->tcp_opened++;
    return 1;
}

static void segment(struct net *net, struct tcp *tcp, struct tcp_header *header, const u8 *data,
                    u32 size)
{
    u32 sequence = net32(header->sequence);
    int opening = tcp->state == TCP_SYN_SENT || tcp->state == TCP_SYN_RECEIVED;
    tcp_ready(net, tcp);
    if (header->flags & TCP_RST) {
        u32 ours = net32(header->acknowledgement);
        if (tcp->state == TCP_SYN_SENT ? ours == tcp->max : sequence == tcp->rcv_nxt)
            tcp_forget(net, tcp, 1);
        return;
    }
    if (header->flags & TCP_SYN && tcp->state != TCP_SYN_SENT) {
        if (tcp->state == TCP_SYN_RECEIVED)
            tcp->nxt = tcp->una; /* our answer was lost */
        else
            tcp->ack_due = 1; /* RFC 5961, 4: no old segment can end a connection */
        return;
    }
    if (opening && !open(net, tcp, header))
        return;
    if (!(header->flags & TCP_ACK) || !acknowledge(net, tcp, header, size))
        return;
    if (!(header->flags & TCP_SYN))
        take_data(net, tcp, header, data, size);
}

void tcp_input(struct net *net, u8 *frame, struct tcp_header *header, u32 length, int family)
{
    struct tcp key;
    zero_bytes(&key, sizeof key);
    key.family = family;
    key.mac = ((struct ethernet *)frame)->from;
    if (family == 4) {
        struct ip4 *ip = (struct ip4 *)(frame + sizeof(struct ethernet));
        key.peer = address4(ip->from);
        key.local = address4(ip->to);
    } else {
        struct ip6 *ip = (struct ip6 *)(frame + sizeof(struct ethernet));
        key.peer = ip->from;
        key.local = ip->to;
    }
    u64 sum = sum_address(sum_address(net32(length + PROTOCOL_TCP), &key.peer), &key.local);
    u32 header_size = (header->size >> 4) * 4;
    if (header_size < sizeof *header || header_size > length ||
        sum_finish(sum_bytes(sum, (u8 *)header, length))) {
        net->report->rx_damaged++;
        return;
    }
    key.peer_port = header->from;
    key.local_port = header->to;
    struct tcp *tcp = find(net, &key);
    u32 size = length - header_size;
    if (tcp) {
        tcp->mac = key.mac; /* the peer may have moved to another card */
        segment(net, tcp, header, (u8 *)header + header_size, size);
    } else if ((header->flags & (TCP_SYN | TCP_ACK | TCP_RST)) == TCP_SYN &&
               is_service(net16(header->to)) && unused(net))
        accept(net, &key, header);
    else
        refuse(net, &key, header, size);
}
