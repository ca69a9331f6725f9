/* The services on top of TCP, and what their bytes are.
 *
 * The byte source is a function of the offset, so that nothing has to be kept for a retransmission
 * and both ends can check every byte: the 8-byte word k, little-endian, is (k + 1) * STEP. */
#include "net.h"

#define PATTERN_STEP 0x9e3779b97f4a7c15ull /* 2^64 / golden ratio: all bytes change, no period */
#define ENDLESS (1ull << 62)
#define PLAIN_WINDOW 0xffffu /* nothing is kept, so as much as fits without window scaling */

static inline u64 pattern_word(u64 offset)
{
    return (offset / 8 + 1) * PATTERN_STEP;
}

static int is_echo(const struct tcp *tcp)
{
    return tcp->service == PORT_ECHO;
}

void stream_open(struct tcp *tcp)
{
    tcp->out_end = tcp->service == PORT_SOURCE ? ENDLESS : 0;
}

u32 stream_window(const struct tcp *tcp)
{
    if (!is_echo(tcp))
        return PLAIN_WINDOW;
    return ECHO_RING_BYTES - (u32)(tcp->in_offset - tcp->una_offset);
}

/* What a byte source still had to send when the peer finished is not sent. */
void stream_peer_finished(struct tcp *tcp)
{
    if (tcp->service == PORT_SOURCE)
        tcp->out_end = tcp->una_offset + (tcp->max - tcp->una);
}

static u64 wrong_words(u64 offset, const u8 *data, u32 size)
{
    u64 wrong = 0;
    while (size && offset % 8) {
        wrong += *data++ != (u8)(pattern_word(offset) >> 8 * (offset % 8));
        offset++, size--;
    }
    u64 word = pattern_word(offset);
    for (; size >= 8; size -= 8, offset += 8, data += 8, word += PATTERN_STEP)
        wrong += ((const struct word64 *)data)->value != word;
    for (; size; size--, offset++)
        wrong += *data++ != (u8)(word >> 8 * (offset % 8));
    return wrong;
}

static void ring_copy_in(u8 *ring, u64 offset, const u8 *data, u32 size)
{
    u32 at = offset % ECHO_RING_BYTES, first = ECHO_RING_BYTES - at;
    if (first > size)
        first = size;
    copy_bytes(ring + at, data, first);
    copy_bytes(ring, data + first, size - first);
}

void stream_advance(struct net *net, struct tcp *tcp, u32 size)
{
    net->report->tcp_bytes_in += size;
    tcp->in_offset += size;
    tcp->rcv_nxt += size;
    if (is_echo(tcp))
        tcp->out_end += size;
}

void stream_place(struct net *net, struct tcp *tcp, u64 offset, const u8 *data, u32 size)
{
    if (is_echo(tcp)) {
        ring_copy_in(net->rings[tcp_index(net, tcp)], offset, data, size);
        return;
    }
    if (!offset) /* any bytes may be discarded; the source's own are checked */
        tcp->pattern = size >= 8 && ((const struct word64 *)data)->value == PATTERN_STEP;
    if (tcp->pattern || tcp->active)
        net->report->tcp_pattern_errors += wrong_words(offset, data, size);
}

void stream_fill(struct net *net, const struct tcp *tcp, u64 offset, u8 *data, u32 size)
{
    if (is_echo(tcp)) {
        const u8 *ring = net->rings[tcp_index(net, tcp)];
        u32 at = offset % ECHO_RING_BYTES, first = ECHO_RING_BYTES - at;
        if (first > size)
            first = size;
        copy_bytes(data, ring + at, first);
        copy_bytes(data + first, ring, size - first);
        return;
    }
    for (; size && offset % 8; size--, offset++)
        *data++ = pattern_word(offset) >> 8 * (offset % 8);
    u64 word = pattern_word(offset);
    for (; size >= 8; size -= 8, data += 8, word += PATTERN_STEP)
        ((struct word64 *)data)->value = word;
    for (; size; size--, word >>= 8)
        *data++ = word;
}
