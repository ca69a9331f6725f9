#include "cmdline.h"

int option_text(const struct boot_info *info, const char *name, u32 nth, struct text *value)
{
    const char *text = (const char *)info->cmdline_address;
    const char *end = text + info->cmdline_length;
    while (text < end) {
        const char *expected = name;
        while (text < end && *expected && *text == *expected)
            text++, expected++;
        if (!*expected && !nth--) {
            value->at = text;
            while (text < end && *text != ' ')
                text++;
            value->end = text;
            return 1;
        }
        while (text < end && *text != ' ')
            text++;
        while (text < end && *text == ' ')
            text++;
    }
    return 0;
}

u64 option(const struct boot_info *info, const char *name, u64 otherwise)
{
    struct text value;
    return option_text(info, name, 0, &value) ? read_number(&value) : otherwise;
}

u64 read_number(struct text *text)
{
    u64 value = 0;
    while (text->at < text->end && *text->at >= '0' && *text->at <= '9')
        value = value * 10 + (*text->at++ - '0');
    return value;
}

int read_letter(struct text *text, char letter)
{
    if (text->at == text->end || *text->at != letter)
        return 0;
    text->at++;
    return 1;
}

u32 read_ip4(struct text *text)
{
    u32 address = 0;
    for (u32 shift = 0; shift < 32; shift += 8) {
        address |= (u32)(u8)read_number(text) << shift;
        read_letter(text, '.');
    }
    return address;
}

static int hex_digit(char letter)
{
    if (letter >= '0' && letter <= '9')
        return letter - '0';
    if (letter >= 'a' && letter <= 'f')
        return letter - 'a' + 10;
    if (letter >= 'A' && letter <= 'F')
        return letter - 'A' + 10;
    return -1;
}

void read_ip6(struct text *text, u8 *address)
{
    u32 used = 0, gap = 16; /* bytes read; where "::" was */
    for (u32 i = 0; i < 16; i++)
        address[i] = 0;
    while (used < 16) {
        if (text->at + 1 < text->end && text->at[0] == ':' && text->at[1] == ':') {
            text->at += 2;
            gap = used;
        }
        if (text->at == text->end || hex_digit(*text->at) < 0)
            break;
        u32 group = 0;
        while (text->at < text->end && hex_digit(*text->at) >= 0)
            group = group << 4 | (u32)hex_digit(*text->at++);
        address[used++] = group >> 8;
        address[used++] = group;
        if (text->at < text->end && text->at[0] == ':' &&
            !(text->at + 1 < text->end && text->at[1] == ':'))
            text->at++;
    }
    if (gap == 16 || used == 16)
        return;
    u32 after = used - gap; /* what follows "::" belongs at the end */
    for (u32 i = 1; i <= after; i++)
        address[16 - i] = address[used - i];
    for (u32 i = gap; i < 16 - after; i++)
        address[i] = 0;
}
