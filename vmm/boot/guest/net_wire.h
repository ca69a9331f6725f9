/* What is on the wire: headers, byte order, checksums. Fields are in network byte order; the
 * types are packed because a frame begins 12 bytes (the virtio header) into its buffer. */
#ifndef CPR_GUEST_NET_WIRE_H
#define CPR_GUEST_NET_WIRE_H

#include "layout.h"

#define WIRE __attribute__((packed, may_alias))

static inline u16 net16(u16 value) { return __builtin_bswap16(value); }
static inline u32 net32(u32 value) { return __builtin_bswap32(value); }
#define NET16(constant) ((u16)(((constant) & 0xff) << 8 | (constant) >> 8))

#define TYPE_IP4 NET16(0x0800)
#define TYPE_ARP NET16(0x0806)
#define TYPE_IP6 NET16(0x86dd)

#define PROTOCOL_ICMP 1
#define PROTOCOL_TCP 6
#define PROTOCOL_UDP 17
#define PROTOCOL_ICMP6 58

struct WIRE word64 { u64 value; };
struct WIRE word32 { u32 value; };
struct WIRE word16 { u16 value; };

struct WIRE mac {
    u32 low;
    u16 high;
};

struct WIRE ethernet {
    struct mac to;
    struct mac from;
    u16 type;
};

struct WIRE arp {
    u16 hardware;
    u16 protocol;
    u8 hardware_size;
    u8 protocol_size;
    u16 operation;
    struct mac sender_mac;
    u32 sender_ip;
    struct mac target_mac;
    u32 target_ip;
};

struct WIRE ip4 {
    u8 version_size;
    u8 service;
    u16 length;
    u16 id;
    u16 fragment;
    u8 ttl;
    u8 protocol;
    u16 checksum;
    u32 from;
    u32 to;
};

/* Both families share one form: an IPv4 address is in the last 4 bytes of it, the rest is 0. */
struct WIRE address {
    u64 word[2];
};

struct WIRE ip6 {
    u32 version_flow;
    u16 length;
    u8 protocol;
    u8 hops;
    struct address from;
    struct address to;
};

struct WIRE icmp {
    u8 type;
    u8 code;
    u16 checksum;
    u32 rest;
};

struct WIRE udp {
    u16 from;
    u16 to;
    u16 length;
    u16 checksum;
};

struct WIRE tcp_header {
    u16 from;
    u16 to;
    u32 sequence;
    u32 acknowledgement;
    u8 size; /* of the header in 4-byte words, in the upper 4 bits */
    u8 flags;
    u16 window;
    u16 checksum;
    u16 urgent;
};

#define TCP_FIN 1
#define TCP_SYN 2
#define TCP_RST 4
#define TCP_PSH 8
#define TCP_ACK 16

static inline int same_mac(const struct mac *a, const struct mac *b)
{
    return a->low == b->low && a->high == b->high;
}

static inline int same_address(const struct address *a, const struct address *b)
{
    return a->word[0] == b->word[0] && a->word[1] == b->word[1];
}

static inline struct address address4(u32 ip)
{
    struct address result;
    result.word[0] = 0;
    result.word[1] = (u64)ip << 32;
    return result;
}

/* The internet checksum is a sum of 16-bit words with the carry added back (RFC 1071). The sum of
 * larger words folds to the same, so data is added 8 bytes at a time. */
static inline u64 sum_add(u64 sum, u64 word)
{
    sum += word;
    return sum + (sum < word);
}

static inline u64 sum_address(u64 sum, const struct address *address)
{
    return sum_add(sum_add(sum, address->word[0]), address->word[1]);
}

u64 sum_bytes(u64 sum, const u8 *data, u64 size);

/* The complement of the sum, as it is stored; 0 for data that contains its own checksum. */
u16 sum_finish(u64 sum);

void copy_bytes(u8 *to, const u8 *from, u64 size);
void zero_bytes(void *start, u64 size);

#endif
