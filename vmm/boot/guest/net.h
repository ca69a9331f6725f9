/* The guest's network stack: what its parts know of each other.
 *
 * The stack polls: once in each iteration of the main loop, on vCPU 0 only, without interrupts.
 * A frame that can be answered where it lies (ARP, echo) is answered in its own buffer: addresses
 * are exchanged, which leaves every checksum as it was. It is written for slow emulation (about a
 * million instructions a second), not for many connections. It never announces itself.
 *
 *   link        net_virtio.c in the guest, tests/guests/net_host.c on a tap of the host
 *   frames      net_input.c: ARP, IPv4, IPv6, ICMP;  net_udp.c;  net_tcp.c, net_tcp_out.c
 *   services    UDP and TCP port 7 echo, 9 discard, 19 byte source (net_stream.c)
 *   own flows   net_flow.c, from the command line
 */
#ifndef CPR_GUEST_NET_H
#define CPR_GUEST_NET_H

#include "cmdline.h"
#include "net_wire.h"

#define NET_FRAME_MAX 1514
#define NET_FLOWS 8   /* UDP flows whose sequence numbers are watched */
#define NET_TCPS 8    /* TCP connections at once */
#define NET_ACTIVE 4  /* flows that the guest itself begins */
#define ECHO_RING_BYTES 0x4000u /* power of two; also the receive window of an echo connection */
#define NS_PER_S 1000000000ull

#define PORT_ECHO 7
#define PORT_DISCARD 9
#define PORT_SOURCE 19

/* In the report, at NET_REPORT_OFFSET of vCPU 0's slot; net_report.py reads it. All u64. */
#define NET_REPORT_OFFSET 0x1000
#define NET_REPORT_MAGIC 0x3154454e54525043ull /* "CPRTNET1" */
#define NET_LINK_ABSENT 0
#define NET_LINK_UP 1
#define NET_LINK_REFUSED 2 /* the device does not have what this driver needs */

struct flow_report {
    u64 flow; /* its number and run as in struct payload; 0: unused */
    u64 received;
    u64 next;       /* one more than the highest sequence number that came */
    u64 missing;    /* below `next` and never seen */
    u64 duplicated;
    u64 reordered;  /* came after a higher one */
    u64 sent;
};

struct net_report {
    u64 magic;
    u64 link;
    u64 rx_frames;
    u64 tx_frames;
    u64 rx_unused;   /* frames of no interest: another address, protocol or port */
    u64 rx_damaged;  /* wrong length or checksum */
    u64 tx_no_buffer; /* put off (TCP, own flows) because every buffer was in the ring */
    u64 echoes;      /* ICMP and ICMPv6 */
    u64 tcp_opened;
    u64 tcp_closed;  /* in order, by FIN of both sides */
    u64 tcp_resets;  /* received, or given up */
    u64 tcp_retransmits;
    u64 tcp_out_of_order; /* segments that came before their turn */
    u64 tcp_bytes_in;
    u64 tcp_bytes_out; /* acknowledged */
    u64 tcp_pattern_errors; /* words of a byte source that came back wrong */
    struct flow_report flows[NET_FLOWS];
};

/* First bytes of a UDP datagram whose flow is watched; little-endian. */
#define PAYLOAD_MAGIC 0x31574f4c46525043ull /* "CPRFLOW1" */
struct WIRE payload {
    u64 magic;
    u32 flow;
    u32 run;
    u64 sequence;
    u64 sent_ns; /* the sender's CLOCK_MONOTONIC */
};

/* Where a flow of the guest's own goes; the MAC is asked for with ARP. */
struct active {
    u8 protocol; /* 0: unused */
    u8 resolved;
    u8 connected; /* TCP: there is a connection */
    u16 port;    /* of the peer, network order */
    u32 ip;
    u32 next_hop;
    struct mac mac;
    u64 interval_ns; /* UDP */
    u64 due_ns;
};

enum tcp_state { TCP_CLOSED, TCP_SYN_SENT, TCP_SYN_RECEIVED, TCP_OPEN, TCP_LAST_ACK };

struct tcp {
    u8 state;
    u8 family; /* 4 or 6 */
    u8 retries;
    u8 duplicate_acks;
    u8 recovering;
    u8 ack_due;
    u8 peer_finished; /* its FIN came, in order */
    u8 pattern;       /* what comes in is the byte source's pattern, so check it */
    u8 active;        /* 1 + index of the own flow; 0: the peer began */
    u16 service;      /* port number, host order */
    u16 local_port, peer_port; /* network order */
    struct mac mac;
    struct address local, peer;
    u32 mss;
    u32 una, nxt, max; /* oldest unacknowledged, next to send, highest sent + 1 */
    u32 recover;
    u32 window;        /* the peer's */
    u32 congestion, threshold;
    u32 rcv_nxt, advertised;
    u64 una_offset;    /* stream offset of `una` */
    u64 in_offset;     /* stream offset of `rcv_nxt` */
    u64 ahead_from, ahead_end; /* stream offsets of what came too early and is kept */
    u64 out_end;       /* stream offset where our data ends, as far as it is known */
    u64 timer_ns;      /* 0: off */
    u64 timeout_ns;
    u64 smooth_ns, variation_ns;
    u32 timed; /* the round trip of this sequence number is being measured ... */
    u64 timed_at_ns; /* ... since then; 0: none is */
};

struct link;
struct net {
    struct link *link;
    struct net_report *report;
    u64 now;
    u64 due_ns; /* nothing to do before, unless a frame comes */
    u32 ready;  /* bit per TCP connection that wants to send */
    u32 turn;
    u32 ip, netmask, gateway; /* network order; ip 0: no IPv4 */
    u32 has_ip6;
    u32 mss_limit;
    u32 sequence_seed;
    u16 next_port;
    struct mac mac;
    struct address ip6, link_local;
    u64 seen[NET_FLOWS]; /* bit k: sequence number next - 1 - k was seen */
    struct active active[NET_ACTIVE];
    struct tcp tcps[NET_TCPS];
    u8 rings[NET_TCPS][ECHO_RING_BYTES];
};

/* ---- link -------------------------------------------------------------------------------------- */

/* Room for one frame of NET_FRAME_MAX bytes, or 0 (counted). The next call must be `link_send`. */
u8 *link_buffer(struct net *net);
void link_send(struct net *net, u8 *frame, u32 size);
/* Send the frame that is being received, changed in place; its buffer is gone with it. */
void link_reply(struct net *net, u8 *frame, u32 size);

/* ---- stack ------------------------------------------------------------------------------------- */

/* 0: the command line asks for no network. Memory of `net` need not be zero. */
int net_start(struct net *net, const struct boot_info *info, struct net_report *report, u64 now);
/* The link is there: its MAC is known. */
void net_link_up(struct net *net, const struct mac *mac);
/* One received frame; 1: it was answered in place. */
int net_input(struct net *net, u8 *frame, u32 size);
/* After a batch of frames, and when `now` >= due_ns or `ready`: send what is to be sent. */
void net_output(struct net *net);

int udp_input(struct net *net, u8 *frame, u32 size, struct udp *udp, u32 length);
int flow_note(struct net *net, const struct payload *payload);
void flow_output(struct net *net, u32 index);
void arp_request(struct net *net, u32 ip);
/* Headers of a datagram to be sent; the transport's checksum is not in yet. */
void ip4_header(const struct net *net, u8 *frame, const struct mac *to, u32 ip, u8 protocol,
                u32 length);

void tcp_input(struct net *net, u8 *frame, struct tcp_header *header, u32 length, int family);
void tcp_connect(struct net *net, u32 active);
/* 0: no buffer was free. */
int tcp_send(struct net *net, struct tcp *tcp, u8 flags, u32 sequence, u32 length);
int tcp_output(struct net *net, struct tcp *tcp);
void tcp_timer(struct net *net, struct tcp *tcp);
void tcp_restart_timer(struct net *net, struct tcp *tcp);
void tcp_forget(struct net *net, struct tcp *tcp, int reset);

u32 stream_window(const struct tcp *tcp);
/* Keep or check bytes of stream offset `offset`, which is in the window; then count those that are
 * in order now. */
void stream_place(struct net *net, struct tcp *tcp, u64 offset, const u8 *data, u32 size);
void stream_advance(struct net *net, struct tcp *tcp, u32 size);
void stream_fill(struct net *net, const struct tcp *tcp, u64 offset, u8 *data, u32 size);
void stream_peer_finished(struct tcp *tcp);
void stream_open(struct tcp *tcp);

static inline void net_wake_at(struct net *net, u64 time_ns)
{
    if (time_ns < net->due_ns)
        net->due_ns = time_ns;
}

static inline u32 tcp_index(const struct net *net, const struct tcp *tcp)
{
    return tcp - net->tcps;
}

static inline void tcp_ready(struct net *net, const struct tcp *tcp)
{
    net->ready |= 1u << tcp_index(net, tcp);
}

#endif
