/* The built-in guest's network stack on a tap of this host, as an ordinary process.
 *
 *   net_host FD LOSS "ip=10.0.2.15/24 ..."
 *
 * FD is an open tap (IFF_TAP | IFF_NO_PI); LOSS drops about 1 in so many frames each way (0: none),
 * always the same ones. Ends when its standard input does, and prints the report's words. */
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "net.h"

struct link {
    int fd;
    unsigned loss;
    unsigned random;
    u8 own[NET_FRAME_MAX];
    u8 received[0x800];
};

static int is_lost(struct link *link)
{
    link->random = link->random * 1103515245u + 12345u;
    return link->loss && (link->random >> 16) % link->loss == 0;
}

u8 *link_buffer(struct net *net) { return net->link->own; }

void link_send(struct net *net, u8 *frame, u32 size)
{
    net->report->tx_frames++;
    if (!is_lost(net->link) && write(net->link->fd, frame, size) != (ssize_t)size)
        perror("net_host: write");
}

void link_reply(struct net *net, u8 *frame, u32 size) { link_send(net, frame, size); }

static u64 now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * NS_PER_S + now.tv_nsec;
}

static void run(struct net *net, struct link *link)
{
    struct pollfd fds[2] = {{link->fd, POLLIN, 0}, {0, POLLIN, 0}};
    for (;;) {
        net->now = now_ns();
        u64 wait_ns = net->due_ns > net->now ? net->due_ns - net->now : 0;
        int wait_ms = net->ready ? 0 : net->due_ns == ~0ull ? -1 : (int)(wait_ns / 1000000 + 1);
        poll(fds, 2, wait_ms);
        if (fds[1].revents && !fds[0].revents) /* what was sent before the end still counts */
            return;
        net->now = now_ns();
        if (fds[0].revents) {
            ssize_t size = read(link->fd, link->received, sizeof link->received);
            if (size > 0 && !is_lost(link))
                net_input(net, link->received, size);
        }
        net_output(net);
    }
}

int main(int argc, char **argv)
{
    if (argc != 4)
        return 2;
    static struct net net;
    static struct net_report report;
    struct link link = {.fd = atoi(argv[1]), .loss = atoi(argv[2]), .random = 1};
    struct boot_info info = {.cmdline_length = strlen(argv[3]), .cmdline_address = (u64)argv[3]};
    struct mac mac = {0x00005452, 0x1234}; /* 52:54:00:00:34:12 */
    memset(&net, 0xa5, sizeof net); /* the stack must not count on zeros */
    if (!net_start(&net, &info, &report, now_ns()))
        return 3;
    net.link = &link;
    net_link_up(&net, &mac);
    run(&net, &link);
    for (u64 *word = (u64 *)&report; word < (u64 *)(&report + 1); word++)
        printf("%llu\n", *word);
    return 0;
}
