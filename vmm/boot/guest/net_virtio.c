#include "net_virtio.h"

#define MAGIC_VALUE 0x74726976 /* "virt" */
#define DEVICE_NET 1

/* Registers, in 4-byte words. */
#define REG(offset) ((offset) / 4)
#define MAGIC REG(0x000)
#define VERSION REG(0x004)
#define DEVICE_ID REG(0x008)
#define DEVICE_FEATURES REG(0x010)
#define DEVICE_FEATURES_SELECT REG(0x014)
#define DRIVER_FEATURES REG(0x020)
#define DRIVER_FEATURES_SELECT REG(0x024)
#define QUEUE_SELECT REG(0x030)
#define QUEUE_SIZE_MAX REG(0x034)
#define QUEUE_SIZE REG(0x038)
#define QUEUE_READY REG(0x044)
#define QUEUE_NOTIFY REG(0x050)
#define STATUS REG(0x070)
#define QUEUE_TABLE REG(0x080)
#define QUEUE_AVAILABLE REG(0x090)
#define QUEUE_USED REG(0x0a0)
#define CONFIG 0x100

#define STATUS_ACKNOWLEDGE 1
#define STATUS_DRIVER 2
#define STATUS_DRIVER_OK 4
#define STATUS_FEATURES_OK 8

#define FEATURE_MAC (1u << 5)
#define FEATURE_VERSION_1 1u /* in the second word */
#define DESCRIPTOR_WRITE 2
#define NO_INTERRUPT 1 /* available flags */
#define NO_NOTIFY 1    /* used flags */
#define HEADER_BYTES 12
#define RX_BATCH 8 /* frames in one go; more would be a gap in the guest's progress */

static struct net_memory *memory(void)
{
    return (struct net_memory *)NET_ADDRESS;
}

static u8 *buffer(u32 number)
{
    return memory()->buffers[number];
}

/* ---- rings ------------------------------------------------------------------------------------- */

static void offer(struct queue *queue, u32 number, u32 size)
{
    queue->table[number].size = size;
    queue->available.ring[queue->next++ % RING_SIZE] = number;
}

static void offer_rx(struct link *link, u32 number)
{
    offer(&link->rx, number, BUFFER_BYTES);
}

/* Show the device what was offered. The exchange is a full barrier: its flags are read after. */
static void publish(struct link *link, struct queue *queue)
{
    if (queue->available.index == queue->next)
        return;
    __atomic_exchange_n(&queue->available.index, queue->next, __ATOMIC_SEQ_CST);
    if (!(*(volatile u16 *)&queue->used.flags & NO_NOTIFY))
        link->registers[QUEUE_NOTIFY] = queue->number;
}

static void reclaim(struct link *link)
{
    struct queue *tx = &link->tx;
    while (tx->seen != *(volatile u16 *)&tx->used.index) {
        u32 number = *(volatile u32 *)&tx->used.ring[tx->seen % RING_SIZE].id % RING_SIZE;
        tx->seen++;
        if (number < RX_BUFFERS)
            offer_rx(link, number);
        else
            link->free[link->free_count++ % RING_SIZE] = number;
    }
}

/* ---- what the stack calls ---------------------------------------------------------------------- */

u8 *link_buffer(struct net *net)
{
    struct link *link = net->link;
    if (!link->free_count) {
        reclaim(link);
        if (!link->free_count) {
            net->report->tx_no_buffer++;
            return 0;
        }
    }
    return buffer(link->free[link->free_count - 1]) + HEADER_BYTES;
}

static void send(struct net *net, u32 number, u32 size)
{
    u8 *start = buffer(number);
    ((struct word64 *)start)->value = 0; /* no offload */
    ((struct word32 *)(start + 8))->value = 0;
    offer(&net->link->tx, number, HEADER_BYTES + size);
    net->report->tx_frames++;
}

void link_send(struct net *net, u8 *frame, u32 size)
{
    struct link *link = net->link;
    (void)frame; /* the one of link_buffer */
    send(net, link->free[--link->free_count], size);
}

void link_reply(struct net *net, u8 *frame, u32 size)
{
    (void)frame;
    send(net, net->link->pending_reply - 1, size);
}

/* ---- work of an iteration ---------------------------------------------------------------------- */

static void receive(struct net *net, struct link *link)
{
    struct queue *rx = &link->rx;
    for (u32 i = 0; i < RX_BATCH && rx->seen != *(volatile u16 *)&rx->used.index; i++) {
        u32 slot = rx->seen % RING_SIZE;
        u32 number = *(volatile u32 *)&rx->used.ring[slot].id % RX_BUFFERS;
        u32 size = *(volatile u32 *)&rx->used.ring[slot].size;
        rx->seen++;
        link->pending_reply = number + 1;
        if (size < HEADER_BYTES || size > BUFFER_BYTES) {
            net->report->rx_damaged++;
            offer_rx(link, number);
        } else if (!net_input(net, buffer(number) + HEADER_BYTES, size - HEADER_BYTES))
            offer_rx(link, number);
    }
}

void net_virtio_work(struct net *net, u64 now)
{
    struct link *link = net->link;
    net->now = now;
    reclaim(link);
    receive(net, link);
    net_output(net);
    publish(link, &link->tx);
    publish(link, &link->rx);
}

/* ---- start (virtio 1.2, 3.1.1) ----------------------------------------------------------------- */

static volatile u32 *find_device(const struct boot_info *info)
{
    for (u64 slot = 0; slot < info->virtio_slots; slot++) {
        volatile u32 *registers = (volatile u32 *)(info->virtio_base + slot * info->virtio_step);
        if (registers[MAGIC] == MAGIC_VALUE && registers[VERSION] == 2 &&
            registers[DEVICE_ID] == DEVICE_NET)
            return registers;
    }
    return 0;
}

static void write_address(volatile u32 *registers, u32 which, const void *address)
{
    registers[which] = (u64)address;
    registers[which + 1] = (u64)address >> 32;
}

static int set_up_queue(volatile u32 *registers, struct queue *queue, u32 number, u16 flags)
{
    registers[QUEUE_SELECT] = number;
    if (registers[QUEUE_SIZE_MAX] < RING_SIZE)
        return 0;
    queue->number = number;
    queue->available.flags = NO_INTERRUPT;
    for (u32 i = 0; i < RING_SIZE; i++) {
        queue->table[i].address = (u64)buffer(i);
        queue->table[i].flags = flags;
    }
    registers[QUEUE_SIZE] = RING_SIZE;
    write_address(registers, QUEUE_TABLE, queue->table);
    write_address(registers, QUEUE_AVAILABLE, &queue->available);
    write_address(registers, QUEUE_USED, &queue->used);
    registers[QUEUE_READY] = 1;
    return 1;
}

/* Features: modern, and the MAC. 0: the device has them not. */
static int negotiate(volatile u32 *registers)
{
    registers[STATUS] = 0;
    registers[STATUS] = STATUS_ACKNOWLEDGE;
    registers[STATUS] = STATUS_ACKNOWLEDGE | STATUS_DRIVER;
    registers[DEVICE_FEATURES_SELECT] = 0;
    if (!(registers[DEVICE_FEATURES] & FEATURE_MAC))
        return 0;
    registers[DEVICE_FEATURES_SELECT] = 1;
    if (!(registers[DEVICE_FEATURES] & FEATURE_VERSION_1))
        return 0;
    registers[DRIVER_FEATURES_SELECT] = 0;
    registers[DRIVER_FEATURES] = FEATURE_MAC;
    registers[DRIVER_FEATURES_SELECT] = 1;
    registers[DRIVER_FEATURES] = FEATURE_VERSION_1;
    registers[STATUS] = STATUS_ACKNOWLEDGE | STATUS_DRIVER | STATUS_FEATURES_OK;
    return registers[STATUS] & STATUS_FEATURES_OK;
}

static int set_up(struct link *link)
{
    volatile u32 *registers = link->registers;
    return negotiate(registers) && set_up_queue(registers, &link->rx, 0, DESCRIPTOR_WRITE) &&
           set_up_queue(registers, &link->tx, 1, 0);
}

static struct mac read_mac(volatile u32 *registers)
{
    volatile u8 *config = (volatile u8 *)registers + CONFIG;
    struct mac mac;
    for (u32 i = 0; i < 6; i++)
        ((u8 *)&mac)[i] = config[i];
    return mac;
}

struct net *net_virtio_start(const struct boot_info *info, struct net_report *report, u64 now)
{
    struct net *net = &memory()->net;
    struct link *link = &memory()->link;
    if (!net_start(net, info, report, now))
        return 0;
    volatile u32 *registers = find_device(info);
    if (!registers)
        return 0;
    zero_bytes(link, sizeof *link);
    link->registers = registers;
    net->link = link;
    if (!set_up(link)) {
        report->link = NET_LINK_REFUSED;
        return 0;
    }
    for (u32 i = 0; i < RX_BUFFERS; i++)
        offer_rx(link, i);
    for (u32 i = RX_BUFFERS; i < RING_SIZE; i++)
        link->free[link->free_count++] = i;
    registers[STATUS] |= STATUS_DRIVER_OK;
    publish(link, &link->rx);
    struct mac mac = read_mac(registers);
    net_link_up(net, &mac);
    return net;
}
