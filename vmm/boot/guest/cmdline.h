/* The guest's command line: words "name=value" separated by spaces. */
#ifndef CPR_GUEST_CMDLINE_H
#define CPR_GUEST_CMDLINE_H

#include "layout.h"

/* A part of the command line that is still to be read; every reader moves `at`. */
struct text {
    const char *at;
    const char *end;
};

/* The value of the `nth` word (from 0) that begins with `name` (which ends in '='); 0: none. */
int option_text(const struct boot_info *info, const char *name, u32 nth, struct text *value);

/* The number after `name`, or `otherwise`. */
u64 option(const struct boot_info *info, const char *name, u64 otherwise);

u64 read_number(struct text *text);

/* "10.0.2.15", in network byte order. */
u32 read_ip4(struct text *text);

/* "fd00::15", 16 bytes. Without embedded IPv4. */
void read_ip6(struct text *text, u8 *address);

/* Skip `letter` if it comes next. */
int read_letter(struct text *text, char letter);

#endif
