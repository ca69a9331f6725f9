/* Frames that come in: ARP, IPv4 and IPv6, and the echoes that need no state. */
#include "net.h"

#define ARP_REQUEST NET16(1)
#define ARP_REPLY NET16(2)
#define ICMP_ECHO_REPLY 0
#define ICMP_ECHO 8
#define ICMP6_ECHO 128
#define ICMP6_ECHO_REPLY 129
#define ICMP6_SOLICIT 135
#define ICMP6_ADVERTISE 136
#define ADVERTISE_SOLICITED_OVERRIDE 0x60
#define OPTION_TARGET_MAC 2
#define FRAGMENT_MASK NET16(0x3fff) /* "more fragments" and the offset */

static void reply(struct net *net, u8 *frame, u32 size)
{
    struct ethernet *ethernet = (struct ethernet *)frame;
    ethernet->to = ethernet->from;
    ethernet->from = net->mac;
    link_reply(net, frame, size);
}

static int arp_input(struct net *net, u8 *frame, u32 size)
{
    struct arp *arp = (struct arp *)(frame + sizeof(struct ethernet));
    if (size < sizeof(struct ethernet) + sizeof *arp || arp->protocol != TYPE_IP4)
        return 0;
    for (u32 i = 0; i < NET_ACTIVE; i++)
        if (net->active[i].protocol && net->active[i].next_hop == arp->sender_ip) {
            net->active[i].mac = arp->sender_mac;
            net->active[i].resolved = 1;
            net->active[i].due_ns = net->now;
            net->due_ns = net->now;
        }
    if (arp->operation != ARP_REQUEST || arp->target_ip != net->ip || !net->ip)
        return 0;
    arp->operation = ARP_REPLY;
    arp->target_mac = arp->sender_mac;
    arp->target_ip = arp->sender_ip;
    arp->sender_mac = net->mac;
    arp->sender_ip = net->ip;
    reply(net, frame, sizeof(struct ethernet) + sizeof *arp);
    return 1;
}

void arp_request(struct net *net, u32 ip)
{
    u8 *frame = link_buffer(net);
    if (!frame)
        return;
    struct ethernet *ethernet = (struct ethernet *)frame;
    struct arp *arp = (struct arp *)(frame + sizeof *ethernet);
    ethernet->to.low = 0xffffffff;
    ethernet->to.high = 0xffff;
    ethernet->from = net->mac;
    ethernet->type = TYPE_ARP;
    arp->hardware = NET16(1);
    arp->protocol = TYPE_IP4;
    arp->hardware_size = 6;
    arp->protocol_size = 4;
    arp->operation = ARP_REQUEST;
    arp->sender_mac = net->mac;
    arp->sender_ip = net->ip;
    arp->target_mac.low = 0;
    arp->target_mac.high = 0;
    arp->target_ip = ip;
    link_send(net, frame, sizeof *ethernet + sizeof *arp);
}

/* The checksum after its first word went from `was` to `is` (RFC 1624). */
static u16 adjusted(u16 checksum, u16 was, u16 is)
{
    u32 sum = (u16)~net16(checksum) + (u16)~was + (u32)is;
    sum = (sum & 0xffff) + (sum >> 16);
    sum = (sum & 0xffff) + (sum >> 16);
    return net16(~sum);
}

static int echo(struct net *net, u8 *frame, u32 size, struct icmp *icmp, u8 request, u8 answer)
{
    if (icmp->type != request || icmp->code)
        return 0;
    icmp->type = answer;
    icmp->checksum = adjusted(icmp->checksum, request << 8, answer << 8);
    net->report->echoes++;
    reply(net, frame, size);
    return 1;
}

static void swap_ip4(struct ip4 *ip)
{
    u32 from = ip->from;
    ip->from = ip->to;
    ip->to = from;
}

static int ip4_input(struct net *net, u8 *frame, u32 size)
{
    struct ip4 *ip = (struct ip4 *)(frame + sizeof(struct ethernet));
    u32 room = size - sizeof(struct ethernet), length = net16(ip->length);
    if (room < sizeof *ip || length > room || length < sizeof *ip ||
        sum_finish(sum_bytes(0, (u8 *)ip, sizeof *ip))) {
        net->report->rx_damaged++;
        return 0;
    }
    if (ip->version_size != 0x45 || ip->fragment & FRAGMENT_MASK || !net->ip || ip->to != net->ip) {
        net->report->rx_unused++;
        return 0;
    }
    u8 *body = (u8 *)(ip + 1);
    length -= sizeof *ip;
    u32 used = sizeof(struct ethernet) + sizeof *ip + length; /* short frames are padded */
    if (ip->protocol == PROTOCOL_UDP && length >= sizeof(struct udp)) {
        if (!udp_input(net, frame, used, (struct udp *)body, length))
            return 0;
        swap_ip4(ip);
        reply(net, frame, used);
        return 1;
    }
    if (ip->protocol == PROTOCOL_TCP && length >= sizeof(struct tcp_header)) {
        tcp_input(net, frame, (struct tcp_header *)body, length, 4);
        return 0;
    }
    if (ip->protocol == PROTOCOL_ICMP && length >= sizeof(struct icmp)) {
        swap_ip4(ip);
        if (echo(net, frame, used, (struct icmp *)body, ICMP_ECHO, ICMP_ECHO_REPLY))
            return 1;
    }
    net->report->rx_unused++;
    return 0;
}

static int is_our_ip6(const struct net *net, const struct address *address)
{
    return same_address(address, &net->ip6) || same_address(address, &net->link_local);
}

/* A neighbour solicitation becomes the advertisement, in place. */
static int solicited(struct net *net, u8 *frame, struct ip6 *ip, struct icmp *icmp, u32 length)
{
    struct address *target = (struct address *)(icmp + 1);
    u8 *option = (u8 *)(target + 1);
    u32 answer_length = sizeof *icmp + sizeof *target + 8;
    if (length < sizeof *icmp + sizeof *target || icmp->code || ip->hops != 255 ||
        !is_our_ip6(net, target))
        return 0;
    if (!ip->from.word[0] && !ip->from.word[1])
        return 0; /* somebody checks whether the address is free; we make no claims */
    ip->to = ip->from;
    ip->from = *target;
    ip->length = net16(answer_length);
    icmp->type = ICMP6_ADVERTISE;
    icmp->checksum = 0;
    icmp->rest = ADVERTISE_SOLICITED_OVERRIDE;
    option[0] = OPTION_TARGET_MAC;
    option[1] = 1; /* times 8 bytes */
    *(struct mac *)(option + 2) = net->mac;
    u64 sum = sum_address(sum_address(0, &ip->from), &ip->to);
    sum = sum_add(sum, net32(answer_length + PROTOCOL_ICMP6));
    icmp->checksum = sum_finish(sum_bytes(sum, (u8 *)icmp, answer_length));
    reply(net, frame, sizeof(struct ethernet) + sizeof *ip + answer_length);
    return 1;
}

static void swap_ip6(struct ip6 *ip)
{
    struct address from = ip->from;
    ip->from = ip->to;
    ip->to = from;
}

static int ip6_input(struct net *net, u8 *frame, u32 size)
{
    struct ip6 *ip = (struct ip6 *)(frame + sizeof(struct ethernet));
    u32 room = size - sizeof(struct ethernet);
    if (room < sizeof *ip || net16(ip->length) > room - sizeof *ip) {
        net->report->rx_damaged++;
        return 0;
    }
    u32 length = net16(ip->length);
    u32 used = sizeof(struct ethernet) + sizeof *ip + length;
    u8 *body = (u8 *)(ip + 1);
    struct icmp *icmp = (struct icmp *)body;
    if (!net->has_ip6)
        return 0;
    if (ip->protocol == PROTOCOL_ICMP6 && length >= sizeof *icmp && icmp->type == ICMP6_SOLICIT)
        return solicited(net, frame, ip, icmp, length);
    if (!is_our_ip6(net, &ip->to)) {
        net->report->rx_unused++;
        return 0;
    }
    if (ip->protocol == PROTOCOL_UDP && length >= sizeof(struct udp)) {
        if (!udp_input(net, frame, used, (struct udp *)body, length))
            return 0;
        swap_ip6(ip);
        reply(net, frame, used);
        return 1;
    }
    if (ip->protocol == PROTOCOL_TCP && length >= sizeof(struct tcp_header)) {
        tcp_input(net, frame, (struct tcp_header *)body, length, 6);
        return 0;
    }
    if (ip->protocol == PROTOCOL_ICMP6 && length >= sizeof *icmp) {
        swap_ip6(ip);
        if (echo(net, frame, used, icmp, ICMP6_ECHO, ICMP6_ECHO_REPLY))
            return 1;
    }
    net->report->rx_unused++;
    return 0;
}

int net_input(struct net *net, u8 *frame, u32 size)
{
    struct ethernet *ethernet = (struct ethernet *)frame;
    net->report->rx_frames++;
    if (size < sizeof *ethernet) {
        net->report->rx_damaged++;
        return 0;
    }
    if (ethernet->type == TYPE_IP4)
        return ip4_input(net, frame, size);
    if (ethernet->type == TYPE_ARP)
        return arp_input(net, frame, size);
    if (ethernet->type == TYPE_IP6)
        return ip6_input(net, frame, size);
    net->report->rx_unused++;
    return 0;
}
