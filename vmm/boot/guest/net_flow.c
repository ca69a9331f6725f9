/* Start of the stack and the flows that the guest begins, both from the command line:
 *
 *   ip=10.0.2.15/24   our address; without it there is no IPv4
 *   ip6=fd00::15      our IPv6 address (a link-local one is there as well)
 *   gw=10.0.2.2       where addresses outside our network are reached
 *   mss=512           largest TCP segment that we send (default: what the peer takes)
 *   udp=IP:PORT:PPS   send so many datagrams a second; up to 4 flows of both kinds
 *   tcp=IP:PORT       connect, send the byte source, check what comes back as its echo
 */
#include "net.h"

#define ARP_RETRY_NS NS_PER_S
#define CONNECT_RETRY_NS NS_PER_S
#define FIRST_EPHEMERAL_PORT 49152
#define MSS_MAX 1460
#define MSS_MIN 64
#define PPS_DEFAULT 10
#define UDP_CATCH_UP 8 /* datagrams of one flow that are sent in one go */

static void add_active(struct net *net, struct text *text, u8 protocol)
{
    for (u32 i = 0; i < NET_ACTIVE; i++) {
        struct active *active = &net->active[i];
        if (active->protocol)
            continue;
        active->protocol = protocol;
        active->ip = read_ip4(text);
        active->port = read_letter(text, ':') ? net16(read_number(text)) : 0;
        u64 pps = read_letter(text, ':') ? read_number(text) : PPS_DEFAULT;
        active->interval_ns = NS_PER_S / (pps ? pps : PPS_DEFAULT);
        int near = ((active->ip ^ net->ip) & net->netmask) == 0;
        active->next_hop = near || !net->gateway ? active->ip : net->gateway;
        return;
    }
}

static u32 read_netmask(struct text *text)
{
    u64 bits = read_letter(text, '/') ? read_number(text) : 24;
    return bits && bits <= 32 ? net32(0xffffffffu << (32 - bits)) : 0;
}

int net_start(struct net *net, const struct boot_info *info, struct net_report *report, u64 now)
{
    struct text value;
    int ip4 = option_text(info, "ip=", 0, &value);
    struct text value6;
    int ip6 = option_text(info, "ip6=", 0, &value6);
    if (!ip4 && !ip6)
        return 0;
    zero_bytes(net, sizeof *net - sizeof net->rings);
    zero_bytes(report, sizeof *report);
    net->report = report;
    net->now = now;
    net->due_ns = ~0ull;
    if (ip4) {
        net->ip = read_ip4(&value);
        net->netmask = read_netmask(&value);
    }
    if (ip6) {
        net->has_ip6 = 1;
        read_ip6(&value6, (u8 *)&net->ip6);
    }
    if (option_text(info, "gw=", 0, &value))
        net->gateway = read_ip4(&value);
    u64 mss = option(info, "mss=", MSS_MAX);
    net->mss_limit = mss < MSS_MIN ? MSS_MIN : mss > MSS_MAX ? MSS_MAX : mss;
    net->next_port = FIRST_EPHEMERAL_PORT;
    net->sequence_seed = now >> 12;
    for (u32 i = 0; ip4 && option_text(info, "udp=", i, &value); i++)
        add_active(net, &value, PROTOCOL_UDP);
    for (u32 i = 0; ip4 && option_text(info, "tcp=", i, &value); i++)
        add_active(net, &value, PROTOCOL_TCP);
    report->magic = NET_REPORT_MAGIC;
    return 1;
}

void net_link_up(struct net *net, const struct mac *mac)
{
    u8 *host_part = (u8 *)&net->link_local + 8;
    const u8 *bytes = (const u8 *)mac;
    net->mac = *mac;
    net->report->link = NET_LINK_UP;
    net->link_local.word[0] = 0x80fe; /* fe80::/64, as in memory */
    host_part[0] = bytes[0] ^ 2; /* EUI-64, RFC 4291 appendix A */
    host_part[1] = bytes[1];
    host_part[2] = bytes[2];
    host_part[3] = 0xff;
    host_part[4] = 0xfe;
    host_part[5] = bytes[3];
    host_part[6] = bytes[4];
    host_part[7] = bytes[5];
    for (u32 i = 0; i < NET_ACTIVE; i++)
        net->active[i].due_ns = net->now;
    net->due_ns = net->now;
}

static void active_due(struct net *net, u32 index)
{
    struct active *active = &net->active[index];
    if (!active->resolved) {
        arp_request(net, active->next_hop);
        active->due_ns = net->now + ARP_RETRY_NS;
    } else if (active->protocol == PROTOCOL_UDP) {
        for (u32 i = 0; i < UDP_CATCH_UP && active->due_ns <= net->now; i++)
            flow_output(net, index);
    } else {
        if (!active->connected)
            tcp_connect(net, index);
        active->due_ns = net->now + CONNECT_RETRY_NS;
    }
}

static void timers(struct net *net)
{
    net->due_ns = ~0ull;
    for (u32 i = 0; i < NET_ACTIVE; i++) {
        struct active *active = &net->active[i];
        if (!active->protocol)
            continue;
        if (active->due_ns <= net->now)
            active_due(net, i);
        net_wake_at(net, active->due_ns);
    }
    for (u32 i = 0; i < NET_TCPS; i++) {
        struct tcp *tcp = &net->tcps[i];
        if (tcp->timer_ns && tcp->timer_ns <= net->now)
            tcp_timer(net, tcp);
        if (tcp->timer_ns)
            net_wake_at(net, tcp->timer_ns);
    }
}

void net_output(struct net *net)
{
    if (net->now >= net->due_ns)
        timers(net);
    if (!net->ready)
        return;
    for (u32 i = 0; i < NET_TCPS; i++) { /* acknowledgements of this batch, and data, in turn */
        u32 index = (net->turn + i) % NET_TCPS;
        if (net->ready >> index & 1 && !tcp_output(net, &net->tcps[index]))
            net->ready &= ~(1u << index);
    }
    net->turn++;
}
