/* Addresses and numbers that the guest shares with the VMM.
 * The Python side is vmm/boot/direct.py (boot info) and vmm/boot/guest/report.py (report);
 * tests/unit/boot/test_guest_report.py compares the two. */
#ifndef CPR_GUEST_LAYOUT_H
#define CPR_GUEST_LAYOUT_H

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

#define PAGE_SIZE_BYTES 0x1000ull
#define PC_HOLE_END 0x100000000ull

/* Boot info: what the VMM tells a direct-boot guest (address in rdi). */
#define BOOT_INFO_MAGIC 0x31544f4f42525043ull /* "CPRBOOT1" */
struct boot_info {
    u64 magic;
    u32 version;
    u32 size_bytes;
    u64 ram_below_4g;
    u64 ram_above_4g;
    u64 mapped_end; /* first guest-physical address that is not identity-mapped */
    u32 vcpu_count;
    u32 cmdline_length;
    u64 cmdline_address;
    u16 clock_port;  /* 0: there is none, and the TSC is the clock */
    u16 serial_port; /* 0: there is none */
    u32 reserved;
    u64 virtio_base; /* virtio-mmio register pages: address, distance and number */
    u32 virtio_step;
    u32 virtio_slots;
};

/* Report: one slot for each vCPU. */
#define REPORT_ADDRESS 0x180000ull
#define SLOT_SIZE_BYTES 0x4000ull
#define MAX_VCPUS 32
#define WORK_START 0x200000ull
#define REPORT_MAGIC 0x3153455547525043ull /* "CPRGUES1" */
#define STAMP_MAGIC 0x5afec0de9e3779b9ull
#define GAP_CHECK_MAGIC 0x6a70cafe0f0fa5a5ull
#define GAP_BUCKET_SHIFT 25
#define GAP_ENTRIES 256
#define PASS_SHIFT 32

struct gap {
    u64 start_ns;
    u64 end_ns;
    u64 sequence;
    u64 check;
};

struct report {
    u64 magic;
    u64 vcpu;
    u64 vcpu_count;
    u64 working_pages;
    u64 unmapped_bytes;
    u64 progress; /* pass << PASS_SHIFT | next page */
    u64 sequence;
    u64 first_pass;
    u64 last_ns;
    u64 first_ns;
    u64 max_gap_ns;
    u64 max_gap_at_ns;
    u64 max_gap_sequence;
    u64 clock_backwards;
    u64 errors;
    u64 first_bad_address;
    u64 heartbeats;
    u64 boots;
    u8 padding[0x2000 - 18 * 8];
    struct gap gaps[GAP_ENTRIES];
};

/* 16550 registers. */
#define UART_DATA 0
#define UART_FCR 2
#define UART_LCR 3
#define UART_LSR 5
#define LSR_THRE 0x20

#endif
