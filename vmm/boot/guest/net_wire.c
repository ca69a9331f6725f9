#include "net_wire.h"

u64 sum_bytes(u64 sum, const u8 *data, u64 size)
{
    while (size >= 32) {
        const struct word64 *words = (const struct word64 *)data;
        sum = sum_add(sum, words[0].value);
        sum = sum_add(sum, words[1].value);
        sum = sum_add(sum, words[2].value);
        sum = sum_add(sum, words[3].value);
        data += 32;
        size -= 32;
    }
    while (size >= 8) {
        sum = sum_add(sum, ((const struct word64 *)data)->value);
        data += 8;
        size -= 8;
    }
    u64 last = 0;
    for (u64 i = 0; i < size; i++)
        last |= (u64)data[i] << 8 * i;
    return sum_add(sum, last);
}

u16 sum_finish(u64 sum)
{
    sum = (sum & 0xffffffff) + (sum >> 32);
    sum = (sum & 0xffff) + (sum >> 16 & 0xffff) + (sum >> 32);
    sum = (sum & 0xffff) + (sum >> 16);
    sum = (sum & 0xffff) + (sum >> 16);
    return ~sum;
}

/* Byte moves are eight times slower than word moves where instructions are emulated. */
void copy_bytes(u8 *to, const u8 *from, u64 size)
{
    u64 words = size / 8, bytes = size % 8;
    __asm__ volatile("rep movsq" : "+D"(to), "+S"(from), "+c"(words) : : "memory");
    __asm__ volatile("rep movsb" : "+D"(to), "+S"(from), "+c"(bytes) : : "memory");
}

void zero_bytes(void *start, u64 size)
{
    u64 words = size / 8, bytes = size % 8;
    __asm__ volatile("rep stosq" : "+D"(start), "+c"(words) : "a"(0) : "memory");
    __asm__ volatile("rep stosb" : "+D"(start), "+c"(bytes) : "a"(0) : "memory");
}
