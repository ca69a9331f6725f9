/* The built-in guest: proves, from inside, that a live update lost nothing.
 *
 * Each vCPU stamps its share of RAM in passes, one page an iteration. Before it overwrites a stamp it
 * checks that the page still holds the previous pass. Each iteration reads the clock: the time since
 * the reading before is a gap in the guest's progress, and the longest ones are kept in the report.
 * vCPU 0 also writes a heartbeat line to COM1, at most one byte an iteration, because printing a
 * whole line at once would be a gap of its own.
 *
 * vCPU 0 also serves the network (net.h), if the command line gives it an address.
 *
 * Built for plain x86-64 with general registers only: KVM without hardware support emulates every
 * instruction (about one million a second), and emulates no SSE, popcnt or lzcnt. So an iteration is
 * kept to some sixty instructions and two to four port accesses, about 100 us there.
 *
 * report.py documents the report, direct.py the boot info.
 */
#include "net_virtio.h"

#define HEARTBEAT_MS_DEFAULT 100
#define NS_PER_MS 1000000ull
#define NS_PER_US 1000ull

static inline void out8(u16 port, u8 value)
{
    __asm__ volatile("outb %0, %1" : : "a"(value), "Nd"(port) : "memory");
}

static inline u8 in8(u16 port)
{
    u8 value;
    __asm__ volatile("inb %1, %0" : "=a"(value) : "Nd"(port) : "memory");
    return value;
}

static inline u32 in32(u16 port)
{
    u32 value;
    __asm__ volatile("inl %1, %0" : "=a"(value) : "Nd"(port) : "memory");
    return value;
}

static inline u64 rdtsc(void)
{
    u32 low, high;
    __asm__ volatile("rdtsc" : "=a"(low), "=d"(high));
    return low | (u64)high << 32;
}

/* Each vCPU has its own pair of clock ports: the first read latches, the second gives the rest.
 * Another VMM has no such ports: there the TSC serves, in its own unit, because the network then
 * needs a clock that goes on, not a right one. */
static inline u64 clock_ns(u16 port)
{
    if (!port)
        return rdtsc();
    u64 low = in32(port);
    return low | (u64)in32(port + 4) << 32;
}

/* ---- heartbeat: "cpr-guest seq=.. pass=.. gap_us=.. errors=..\n", a byte at a time ------------- */

#define FIELDS 4
static const char LABELS[FIELDS][16] = {"cpr-guest seq=", " pass=", " gap_us=", " errors="};
static const u64 POWERS_OF_TEN[] = {
    10000000000000000000ull, 1000000000000000000ull, 100000000000000000ull, 10000000000000000ull,
    1000000000000000ull, 100000000000000ull, 10000000000000ull, 1000000000000ull, 100000000000ull,
    10000000000ull, 1000000000ull, 100000000ull, 10000000ull, 1000000ull, 100000ull, 10000ull,
    1000ull, 100ull, 10ull, 1ull,
};
#define DIGITS (sizeof POWERS_OF_TEN / sizeof POWERS_OF_TEN[0])

struct heartbeat {
    u64 interval_ns; /* 0: off */
    u64 due_ns;
    u64 gap_ns; /* longest since the last line */
    u64 values[FIELDS];
    u32 field; /* FIELDS: nothing to print */
    u32 label_at;
    u32 digit_at;
    u32 seen_digit;
    u16 port;
};

static void heartbeat_begin(struct heartbeat *beat, struct report *report, u64 now)
{
    beat->values[0] = report->sequence;
    beat->values[1] = report->progress >> PASS_SHIFT;
    beat->values[2] = beat->gap_ns / NS_PER_US;
    beat->values[3] = report->errors;
    beat->gap_ns = 0;
    beat->field = beat->label_at = beat->digit_at = beat->seen_digit = 0;
    beat->due_ns += beat->interval_ns;
    if (beat->due_ns <= now)
        beat->due_ns = now + beat->interval_ns;
}

/* Print at most one byte; a UART that is busy is asked again in the next iteration. */
static void heartbeat_step(struct heartbeat *beat, struct report *report)
{
    if (!(in8(beat->port + UART_LSR) & LSR_THRE))
        return;
    char letter = LABELS[beat->field][beat->label_at];
    if (letter) {
        beat->label_at++;
        out8(beat->port + UART_DATA, letter);
        return;
    }
    if (beat->digit_at < DIGITS) {
        u64 power = POWERS_OF_TEN[beat->digit_at++];
        u64 value = beat->values[beat->field];
        u8 digit = '0';
        if (value >= power) {
            digit += value / power;
            beat->values[beat->field] = value % power;
            beat->seen_digit = 1;
        }
        if (beat->seen_digit || beat->digit_at == DIGITS)
            out8(beat->port + UART_DATA, digit);
        return;
    }
    beat->label_at = beat->digit_at = beat->seen_digit = 0;
    if (++beat->field == FIELDS) {
        out8(beat->port + UART_DATA, '\n');
        report->heartbeats++;
    }
}

/* ---- gaps -------------------------------------------------------------------------------------- */

/* Each entry is the longest gap that ended in its 33.5 ms of the clock. */
static inline void note_gap(struct report *report, u64 *bucket, u64 start, u64 end, u64 sequence)
{
    u64 now_bucket = end >> GAP_BUCKET_SHIFT;
    struct gap *entry = &report->gaps[now_bucket % GAP_ENTRIES];
    if (now_bucket == *bucket && end - start <= entry->end_ns - entry->start_ns)
        return;
    *bucket = now_bucket;
    entry->check = 0; /* never valid: the entry is being written */
    __asm__ volatile("" : : : "memory");
    entry->start_ns = start;
    entry->end_ns = end;
    entry->sequence = sequence;
    __asm__ volatile("" : : : "memory");
    entry->check = start ^ end ^ sequence ^ GAP_CHECK_MAGIC;
}

static inline void note_progress_time(struct report *report, u64 *bucket, u64 *beat_gap, u64 now)
{
    u64 last = report->last_ns;
    report->last_ns = now;
    if (now < last) {
        report->clock_backwards++;
        return;
    }
    u64 gap = now - last;
    u64 sequence = report->sequence;
    if (gap > *beat_gap)
        *beat_gap = gap;
    if (gap > report->max_gap_ns) {
        report->max_gap_ns = gap;
        report->max_gap_at_ns = now;
        report->max_gap_sequence = sequence;
    }
    note_gap(report, bucket, last, now, sequence);
}

/* ---- start and main loop ----------------------------------------------------------------------- */

static void set_up_report(struct report *report, const struct boot_info *info, u64 vcpu, u16 clock)
{
    /* After a reset RAM still holds the stamps of the run before: passes go on from there. */
    u64 warm = report->magic == REPORT_MAGIC;
    u64 boots = warm ? report->boots : 0;
    u64 first_pass = warm ? (report->progress >> PASS_SHIFT) + 1 : 1;
    u64 ram_end = info->ram_above_4g ? PC_HOLE_END + info->ram_above_4g : info->ram_below_4g;
    u64 unmapped = ram_end > info->mapped_end ? ram_end - info->mapped_end : 0;
    u64 ram = info->ram_below_4g + info->ram_above_4g - unmapped;
    u64 pages = ram > WORK_START ? (ram - WORK_START) / PAGE_SIZE_BYTES : 0;
    u64 limit = option(info, "pages=", 0);
    u64 *word = (u64 *)report;
    for (u64 i = 0; i < 18; i++)
        word[i] = 0;
    for (u64 i = 0; i < GAP_ENTRIES; i++)
        report->gaps[i].check = 0;
    report->vcpu = vcpu;
    report->vcpu_count = info->vcpu_count;
    report->working_pages = limit && limit < pages ? limit : pages;
    report->unmapped_bytes = unmapped;
    report->first_pass = first_pass;
    report->progress = first_pass << PASS_SHIFT | vcpu;
    report->boots = boots + 1;
    report->first_ns = report->last_ns = clock_ns(clock); /* now: setting up is not a gap */
    __asm__ volatile("" : : : "memory");
    report->magic = REPORT_MAGIC; /* last: the report is complete */
}

static inline int stamp_is(const volatile u64 *page, u64 index, u64 pass)
{
    if (!pass) /* memory as the VMM made it */
        return page[0] == 0 && page[1] == 0;
    return page[0] == pass && page[1] == (index ^ STAMP_MAGIC ^ pass);
}

void guest_main(const struct boot_info *info, u64 vcpu)
{
    struct report *report = (struct report *)(REPORT_ADDRESS + vcpu * SLOT_SIZE_BYTES);
    u16 clock = info->clock_port ? info->clock_port + vcpu * 8 : 0;
    if (info->magic != BOOT_INFO_MAGIC || vcpu >= MAX_VCPUS)
        return;

    set_up_report(report, info, vcpu, clock);
    u64 pages = report->working_pages;
    if (vcpu >= pages)
        return; /* more vCPUs than pages: this one has nothing to do */

    struct heartbeat beat = {0};
    beat.field = FIELDS;
    beat.port = info->serial_port;
    if (!vcpu && beat.port) {
        beat.interval_ns = option(info, "heartbeat_ms=", HEARTBEAT_MS_DEFAULT) * NS_PER_MS;
        beat.due_ns = report->first_ns + beat.interval_ns;
        out8(beat.port + UART_LCR, 3); /* 8 bits, no parity, 1 stop bit */
        out8(beat.port + UART_FCR, 1);
    }

    struct net *net = 0;
    if (!vcpu)
        net = net_virtio_start(info, (void *)((u8 *)report + NET_REPORT_OFFSET), report->first_ns);

    u64 ram_below_4g = info->ram_below_4g, step = info->vcpu_count;
    u64 pass = report->first_pass;
    u64 checked_from = report->boots == 1 ? pass : pass + 1;
    u64 index = vcpu;
    u64 bucket = 0;
    for (;;) {
        u64 now = clock_ns(clock);
        note_progress_time(report, &bucket, &beat.gap_ns, now);

        u64 address = WORK_START + index * PAGE_SIZE_BYTES;
        if (address >= ram_below_4g)
            address += PC_HOLE_END - ram_below_4g;
        volatile u64 *page = (volatile u64 *)address;
        if (pass >= checked_from && !stamp_is(page, index, pass - 1)) {
            if (!report->errors)
                report->first_bad_address = address;
            report->errors++;
        }
        page[0] = pass;
        page[1] = index ^ STAMP_MAGIC ^ pass;

        index += step;
        if (index >= pages) {
            index = vcpu;
            pass++;
        }
        *(volatile u64 *)&report->progress = pass << PASS_SHIFT | index;
        (*(volatile u64 *)&report->sequence)++;

        if (beat.field < FIELDS)
            heartbeat_step(&beat, report);
        else if (beat.interval_ns && now >= beat.due_ns)
            heartbeat_begin(&beat, report, now);
        if (net)
            net_poll(net, now);
    }
}
