/* The driver of virtio-net over virtio-mmio version 2 (OASIS virtio 1.2), polled. */
#ifndef CPR_GUEST_NET_VIRTIO_H
#define CPR_GUEST_NET_VIRTIO_H

#include "net.h"

#define NET_ADDRESS 0x80000ull /* to the image at 1 MiB */
#define NET_SIZE_BYTES 0x80000ull
#define RING_SIZE 128 /* entries: one for each buffer, so a buffer has one number everywhere */
#define RX_BUFFERS 64 /* buffers 0..63 receive, 64..127 are the stack's own */
#define BUFFER_BYTES 0x800

struct descriptor {
    u64 address;
    u32 size;
    u16 flags;
    u16 next;
};

struct available {
    u16 flags;
    u16 index;
    u16 ring[RING_SIZE];
};

struct used {
    u16 flags;
    u16 index;
    struct {
        u32 id;
        u32 size;
    } ring[RING_SIZE];
};

struct queue {
    struct descriptor table[RING_SIZE] __attribute__((aligned(16)));
    struct available available;
    struct used used __attribute__((aligned(16)));
    u16 next;  /* our available index; the device sees it after `publish` */
    u16 seen;  /* of the device's used index */
    u32 number;
};

struct link {
    volatile u32 *registers;
    struct queue rx, tx;
    u32 free_count; /* own buffers that are not in the TX ring */
    u32 pending_reply; /* 1 + number of the buffer whose frame is being received */
    u8 free[RING_SIZE];
};

/* Everything that the network has in RAM. */
struct net_memory {
    struct net net;
    struct link link;
    u8 buffers[RING_SIZE][BUFFER_BYTES] __attribute__((aligned(16)));
};
_Static_assert(sizeof(struct net_memory) <= NET_SIZE_BYTES, "the network does not fit its place");

/* Look for a device and set it up; 0: no network is asked for, or there is no device. */
struct net *net_virtio_start(const struct boot_info *info, struct net_report *report, u64 now);
void net_virtio_work(struct net *net, u64 now);

/* Once in each iteration of the main loop: a few instructions when there is nothing to do. */
static inline void net_poll(struct net *net, u64 now)
{
    struct link *link = net->link;
    if (*(volatile u16 *)&link->rx.used.index != link->rx.seen || net->ready ||
        *(volatile u16 *)&link->tx.used.index != link->tx.seen || now >= net->due_ns)
        net_virtio_work(net, now);
}

#endif
