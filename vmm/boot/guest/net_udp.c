/* UDP: echo, discard, the sequence numbers that the guest sees, and the flows that it sends. */
#include "net.h"

#define OWN_PORT_FIRST 40000
#define RUN_OF_OWN_FLOWS 0
#define OWN_FLOW_FIRST 0x100
#define OWN_DATAGRAM_BYTES 64 /* like a small RPC; the rest of the payload is zeros */
#define SEEN_BITS 64

/* 1: the datagram is an echo's answer now, but for the addresses. */
int udp_input(struct net *net, u8 *frame, u32 size, struct udp *udp, u32 length)
{
    struct payload *payload = (struct payload *)(udp + 1);
    (void)frame, (void)size;
    if (net16(udp->length) != length) {
        net->report->rx_damaged++;
        return 0;
    }
    int watched = length >= sizeof *udp + sizeof *payload && payload->magic == PAYLOAD_MAGIC;
    if (udp->to == NET16(PORT_ECHO)) {
        u16 from = udp->from;
        if (watched)
            flow_note(net, payload);
        udp->from = udp->to;
        udp->to = from;
        return 1;
    }
    if (watched && (udp->to == NET16(PORT_DISCARD) ||
                    (net16(udp->to) >= OWN_PORT_FIRST && net16(udp->to) < OWN_PORT_FIRST + NET_ACTIVE)))
        flow_note(net, payload);
    else
        net->report->rx_unused++;
    return 0;
}

static void begin_flow(struct flow_report *flow, u64 *seen, u64 name)
{
    u64 sent = flow->flow == name ? flow->sent : 0;
    zero_bytes(flow, sizeof *flow);
    flow->sent = sent;
    flow->flow = name;
    *seen = 0;
}

/* Count one datagram; 1: it is the next one in order. */
int flow_note(struct net *net, const struct payload *payload)
{
    u64 name = (u64)payload->run << 32 | payload->flow | 1ull << 63, sequence = payload->sequence;
    struct flow_report *flow = &net->report->flows[payload->flow % NET_FLOWS];
    u64 *seen = &net->seen[payload->flow % NET_FLOWS];
    if (flow->flow != name)
        begin_flow(flow, seen, name);
    flow->received++;
    if (sequence >= flow->next) {
        u64 ahead = sequence - flow->next + 1;
        flow->missing += ahead - 1;
        *seen = ahead < SEEN_BITS ? *seen << ahead | 1 : 1;
        flow->next = sequence + 1;
        return ahead == 1;
    }
    u64 behind = flow->next - 1 - sequence;
    if (behind >= SEEN_BITS || *seen >> behind & 1) { /* too old to tell counts as seen */
        flow->duplicated++;
        return 0;
    }
    *seen |= 1ull << behind;
    flow->missing--;
    flow->reordered++;
    return 0;
}

void ip4_header(const struct net *net, u8 *frame, const struct mac *to, u32 ip, u8 protocol,
                u32 length)
{
    struct ethernet *ethernet = (struct ethernet *)frame;
    struct ip4 *header = (struct ip4 *)(ethernet + 1);
    ethernet->to = *to;
    ethernet->from = net->mac;
    ethernet->type = TYPE_IP4;
    header->version_size = 0x45;
    header->service = 0;
    header->length = net16(sizeof *header + length);
    header->id = 0;
    header->fragment = NET16(0x4000); /* do not fragment, so the id means nothing */
    header->ttl = 64;
    header->protocol = protocol;
    header->checksum = 0;
    header->from = net->ip;
    header->to = ip;
    header->checksum = sum_finish(sum_bytes(0, (u8 *)header, sizeof *header));
}

static int send_datagram(struct net *net, u32 index, u64 sequence)
{
    struct active *active = &net->active[index];
    u8 *frame = link_buffer(net);
    if (!frame)
        return 0;
    u32 length = sizeof(struct udp) + OWN_DATAGRAM_BYTES;
    struct udp *udp = (struct udp *)(frame + sizeof(struct ethernet) + sizeof(struct ip4));
    struct payload *payload = (struct payload *)(udp + 1);
    ip4_header(net, frame, &active->mac, active->ip, PROTOCOL_UDP, length);
    udp->from = net16(OWN_PORT_FIRST + index);
    udp->to = active->port;
    udp->length = net16(length);
    udp->checksum = 0; /* none, as IPv4 allows: it would cost more than the rest of the datagram */
    zero_bytes(payload, OWN_DATAGRAM_BYTES);
    payload->magic = PAYLOAD_MAGIC;
    payload->flow = OWN_FLOW_FIRST + index;
    payload->run = RUN_OF_OWN_FLOWS;
    payload->sequence = sequence;
    payload->sent_ns = net->now;
    link_send(net, frame, sizeof(struct ethernet) + sizeof(struct ip4) + length);
    return 1;
}

/* A datagram that is due. After a pause those that were missed follow one by one. */
void flow_output(struct net *net, u32 index)
{
    struct active *active = &net->active[index];
    u32 number = OWN_FLOW_FIRST + index;
    struct flow_report *flow = &net->report->flows[number % NET_FLOWS];
    u64 name = (u64)RUN_OF_OWN_FLOWS << 32 | number | 1ull << 63;
    if (flow->flow != name)
        begin_flow(flow, &net->seen[number % NET_FLOWS], name);
    if (send_datagram(net, index, flow->sent)) {
        flow->sent++;
        active->due_ns += active->interval_ns;
    }
    net_wake_at(net, active->due_ns);
}
