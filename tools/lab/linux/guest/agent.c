/* The load agent inside a Linux guest: what runs there while the VMM under it is replaced.
 *
 *   agent HOST PORT TICK_MS
 *
 * - a ticker that sleeps TICK_MS again and again and keeps its longest gap, and whether a clock went backwards;
 * - TCP echo, and UDP echo with a count of every numbered flow, on port 7 (the built-in guest's services);
 * - a disk writer that fills /dev/vda with numbered, checksummed blocks, reads each back, and says its number on the
 *   virtio console;
 * - a control connection to the host: one word in, one line of JSON out.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/pkt_sched.h>
#include <linux/rtnetlink.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <arpa/inet.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/reboot.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { ECHO_PORT = 7, FLOWS = 8, WINDOW = 1 << 16, BLOCK = 4096, DISK_PAUSE_TICKS = 5, WARNING = 4 };
static const int64_t NS_PER_S = 1000000000, NS_PER_MS = 1000000;
static const uint64_t FLOW_MAGIC = 0x31574f4c46525043; /* "CPRFLOW1" */

static int64_t now_ns(clockid_t clock)
{
    struct timespec t;
    clock_gettime(clock, &t);
    return t.tv_sec * NS_PER_S + t.tv_nsec;
}

static void die(const char *what)
{
    fprintf(stderr, "agent: %s: %s\n", what, strerror(errno));
    exit(1);
}

static void in_background(void *(*job)(void *), void *argument)
{
    pthread_t thread;
    if ((errno = pthread_create(&thread, NULL, job, argument)))
        die("pthread_create");
    pthread_detach(thread);
}

/* ---- the ticker ---- */

static long tick_ms;

static struct timespec ticks_long(long count)
{
    return (struct timespec){count * tick_ms / 1000, count * tick_ms % 1000 * NS_PER_MS};
}

static atomic_long ticks, longest_gap_ns, longest_drift_ns, monotonic_backwards, realtime_backwards;

static void *tick(void *unused)
{
    const struct timespec pause = ticks_long(1);
    int64_t monotonic = now_ns(CLOCK_MONOTONIC), realtime = now_ns(CLOCK_REALTIME);
    int64_t low = INT64_MIN, high = INT64_MAX; /* REALTIME is ahead of MONOTONIC by something between */
    for (;;) {
        nanosleep(&pause, NULL);
        int64_t m = now_ns(CLOCK_MONOTONIC), r = now_ns(CLOCK_REALTIME), again = now_ns(CLOCK_MONOTONIC);
        int64_t up = r - again > high ? r - again - high : 0, down = r - m < low ? low - (r - m) : 0;
        int64_t drift = up > down ? up : down;
        low = r - again;
        high = r - m;
        ticks++;
        if (m - monotonic > longest_gap_ns)
            longest_gap_ns = m - monotonic;
        if (drift > longest_drift_ns)
            longest_drift_ns = drift;
        monotonic_backwards += m < monotonic;
        realtime_backwards += r < realtime;
        monotonic = m;
        realtime = r;
    }
    return unused;
}

/* ---- echo ---- */

static int listening(int type)
{
    int fd = socket(AF_INET, type | SOCK_CLOEXEC, 0), one = 1;
    struct sockaddr_in any = {.sin_family = AF_INET, .sin_port = htons(ECHO_PORT)};
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (bind(fd, (struct sockaddr *)&any, sizeof any) || (type == SOCK_STREAM && listen(fd, 64)))
        die("echo port");
    return fd;
}

static void *echo_stream(void *argument)
{
    int fd = (int)(intptr_t)argument;
    char buffer[1 << 16];
    for (ssize_t got; (got = read(fd, buffer, sizeof buffer)) > 0;)
        for (ssize_t done = 0, sent; done < got; done += sent)
            if ((sent = write(fd, buffer + done, got - done)) <= 0)
                goto end;
end:
    close(fd);
    return NULL;
}

static void *serve_tcp(void *unused)
{
    for (int fd = listening(SOCK_STREAM), one = 1, client; (client = accept(fd, NULL, NULL)) >= 0;) {
        setsockopt(client, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        in_background(echo_stream, (void *)(intptr_t)client);
    }
    die("accept");
    return unused;
}

struct flow {
    uint32_t flow, run;
    uint64_t received, next, duplicated, reordered;
    uint8_t seen[WINDOW / 8]; /* of the last WINDOW numbers */
};
static struct flow flows[FLOWS];
static int flow_count;
static pthread_mutex_t flow_lock = PTHREAD_MUTEX_INITIALIZER;

static void note(struct flow *f, uint64_t sequence)
{
    f->received++;
    for (; f->next <= sequence; f->next++)
        f->seen[f->next % WINDOW / 8] &= ~(1 << f->next % 8);
    uint8_t *byte = &f->seen[sequence % WINDOW / 8], bit = 1 << sequence % 8;
    if (sequence + WINDOW < f->next || *byte & bit)
        f->duplicated++;
    else if (sequence + 1 != f->next)
        f->reordered++;
    *byte |= bit;
}

static void count(const char *data, ssize_t size)
{
    struct { uint64_t magic; uint32_t flow, run; uint64_t sequence, sent_ns; } payload;
    if (size < (ssize_t)sizeof payload)
        return;
    memcpy(&payload, data, sizeof payload);
    if (payload.magic != FLOW_MAGIC)
        return;
    pthread_mutex_lock(&flow_lock);
    int i = 0;
    while (i < flow_count && !(flows[i].flow == payload.flow && flows[i].run == payload.run))
        i++;
    if (i == flow_count && flow_count < FLOWS)
        flows[flow_count++] = (struct flow){.flow = payload.flow, .run = payload.run, .next = payload.sequence};
    if (i < flow_count)
        note(&flows[i], payload.sequence);
    pthread_mutex_unlock(&flow_lock);
}

static atomic_long answers_refused; /* by our own kernel */

static void *serve_udp(void *unused)
{
    char data[1 << 16];
    struct sockaddr_in from;
    socklen_t length = sizeof from;
    int fd = listening(SOCK_DGRAM);
    for (ssize_t got; (got = recvfrom(fd, data, sizeof data, 0, (struct sockaddr *)&from, &length)) >= 0;
         length = sizeof from) {
        count(data, got);
        answers_refused += sendto(fd, data, got, 0, (struct sockaddr *)&from, length) != got;
    }
    die("recvfrom");
    return unused;
}

/* ---- what our own kernel drops before the card sees it ---- */

static long drops_told(struct nlmsghdr *message)
{
    int size = TCA_PAYLOAD(message);
    for (struct rtattr *a = TCA_RTA(NLMSG_DATA(message)); RTA_OK(a, size); a = RTA_NEXT(a, size))
        if (a->rta_type == TCA_STATS)
            return ((struct tc_stats *)RTA_DATA(a))->drops;
    return 0;
}

/* By the queueing disciplines of all cards; -1 when the kernel does not say. */
static long queue_drops(void)
{
    struct { struct nlmsghdr header; struct tcmsg body; } ask = {
        .header = {.nlmsg_len = sizeof ask, .nlmsg_type = RTM_GETQDISC, .nlmsg_flags = NLM_F_REQUEST | NLM_F_DUMP}};
    _Alignas(struct nlmsghdr) char data[1 << 14];
    int fd = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE);
    long drops = send(fd, &ask, sizeof ask, 0) == sizeof ask ? 0 : -1;
    for (int done = drops < 0; !done;) {
        int size = recv(fd, data, sizeof data, 0);
        if (size <= 0)
            done = 1, drops = -1;
        for (struct nlmsghdr *m = (void *)data; NLMSG_OK(m, size); m = NLMSG_NEXT(m, size)) {
            done |= m->nlmsg_type == NLMSG_DONE;
            if (m->nlmsg_type == NLMSG_ERROR)
                done = 1, drops = -1;
            if (m->nlmsg_type == RTM_NEWQDISC)
                drops += drops_told(m);
        }
    }
    close(fd);
    return drops;
}

/* ---- the disk ---- */

static atomic_long blocks_written, disk_errors, disk_size;
static atomic_int disk_stop;
static pthread_t disk_writer;
static _Alignas(BLOCK) uint64_t out[BLOCK / 8], back[BLOCK / 8];

static void fill(uint64_t sequence, uint64_t position)
{
    uint64_t base = ((sequence + 1) * 0x9e3779b97f4a7c15 ^ position) >> 8; /* so that no sum below overflows */
    out[0] = sequence;
    out[1] = position;
    for (int i = 2; i < BLOCK / 8; i++)
        out[i] = base + i;
}

static void *write_disk(void *unused)
{
    const struct timespec pause = ticks_long(DISK_PAUSE_TICKS);
    int fd = open("/dev/vda", O_RDWR | O_DIRECT | O_CLOEXEC), console = open("/dev/hvc0", O_WRONLY | O_NOCTTY | O_CLOEXEC);
    if (fd < 0)
        return unused; /* a guest without a disk */
    disk_size = lseek(fd, 0, SEEK_END);
    for (uint64_t sequence = 0; !disk_stop; sequence++) {
        uint64_t position = sequence % (disk_size / BLOCK) * BLOCK;
        fill(sequence, position);
        disk_errors += pwrite(fd, out, BLOCK, position) != BLOCK || (sequence % 8 == 7 && fsync(fd));
        disk_errors += pread(fd, back, BLOCK, position) != BLOCK || memcmp(out, back, BLOCK) != 0;
        blocks_written++;
        disk_errors += dprintf(console, "%lu\n", sequence) < 0;
        nanosleep(&pause, NULL);
    }
    disk_errors += fsync(fd) != 0;
    close(fd);
    close(console); /* waits for what is on its way */
    return unused;
}

/* ---- the kernel's log ---- */

static void print_json_text(FILE *to, const char *text)
{
    for (; *text && *text != '\n'; text++)
        if (*text == '"' || *text == '\\')
            fprintf(to, "\\%c", *text);
        else if ((unsigned char)*text >= ' ')
            fputc(*text, to);
}

static void print_warnings(FILE *to)
{
    char record[8192];
    int fd = open("/dev/kmsg", O_RDONLY | O_NONBLOCK | O_CLOEXEC), any = 0;
    fputs("[", to);
    for (ssize_t got; (got = read(fd, record, sizeof record - 1)) > 0 || (got < 0 && errno == EPIPE);) {
        if (got < 0)
            continue;
        record[got] = 0;
        char *text = strchr(record, ';');
        int priority = atoi(record);
        if (!text || priority >> 3 || (priority & 7) > WARNING)
            continue; /* above 7 it is user space's word */
        fputs(any++ ? ", \"" : "\"", to);
        print_json_text(to, text + 1);
        fputs("\"", to);
    }
    close(fd);
    fputs("]", to);
}

/* ---- control ---- */

static void report(FILE *to)
{
    fprintf(to, "{\"ticks\": %ld, \"longest_gap_ns\": %ld, \"longest_drift_ns\": %ld, ", ticks, atomic_exchange(&longest_gap_ns, 0),
            atomic_exchange(&longest_drift_ns, 0));
    fprintf(to, "\"monotonic_backwards\": %ld, \"realtime_backwards\": %ld, ", monotonic_backwards, realtime_backwards);
    fprintf(to, "\"blocks_written\": %ld, \"disk_errors\": %ld, ", blocks_written, disk_errors);
    fprintf(to, "\"answers_refused\": %ld, \"queue_drops\": %ld, ", answers_refused, queue_drops());
    fputs("\"flows\": [", to);
    pthread_mutex_lock(&flow_lock);
    for (int i = 0; i < flow_count; i++) {
        struct flow *f = &flows[i];
        fprintf(to, "%s{\"flow\": %u, \"run\": %u, \"received\": %lu, \"next_sequence\": %lu, ", i ? ", " : "", f->flow, f->run,
                f->received, f->next);
        fprintf(to, "\"duplicated\": %lu, \"reordered\": %lu}", f->duplicated, f->reordered);
    }
    pthread_mutex_unlock(&flow_lock);
    fputs("], \"warnings\": ", to);
    print_warnings(to);
    fputs("}\n", to);
}

static void obey(FILE *in, FILE *to)
{
    char word[64];
    while (fscanf(in, "%63s", word) == 1) {
        if (!strcmp(word, "stop-disk") && !disk_stop) {
            disk_stop = 1;
            pthread_join(disk_writer, NULL);
        }
        if (!strcmp(word, "poweroff") || !strcmp(word, "reboot")) {
            sync();
            reboot(word[0] == 'p' ? RB_POWER_OFF : RB_AUTOBOOT);
        }
        report(to);
        fflush(to);
    }
}

int main(int argc, char **argv)
{
    if (argc != 4)
        return fprintf(stderr, "usage: agent HOST PORT TICK_MS\n"), 1;
    tick_ms = atol(argv[3]);
    signal(SIGPIPE, SIG_IGN); /* a client that hangs up early ends its own stream only */
    in_background(tick, NULL);
    in_background(serve_tcp, NULL);
    in_background(serve_udp, NULL);
    if ((errno = pthread_create(&disk_writer, NULL, write_disk, NULL)))
        die("pthread_create");
    struct sockaddr_in host = {.sin_family = AF_INET, .sin_port = htons(atoi(argv[2]))};
    inet_pton(AF_INET, argv[1], &host.sin_addr);
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (connect(fd, (struct sockaddr *)&host, sizeof host))
        die("connect to the host");
    obey(fdopen(fd, "r"), fdopen(dup(fd), "w"));
    errno = 0;
    die("the host hung up");
}
