/*
 * net.c - the value of --net
 */
#include "cli/net.h"

#include <arpa/inet.h>
#include <string.h>

#include "base/bits.h"
#include "base/parse.h"
#include "cli/suggest.h"

#define PART_MAX 128

/* Copy up to `end` of *from and step over it; false when the part is missing or too long. */
static bool take_until(const char **from, char end, char part[PART_MAX])
{
    const char *to = end != '\0' ? strchr(*from, end) : *from + strlen(*from);

    if (to == NULL || (size_t)(to - *from) >= PART_MAX)
        return false;
    memcpy(part, *from, (size_t)(to - *from));
    part[to - *from] = '\0';
    *from = end != '\0' ? to + 1 : to;
    return true;
}

static bool take_addr(const char *text, uint8_t addr[4])
{
    struct in_addr in = {0};

    if (text[0] != '\0' && inet_pton(AF_INET, text, &in) != 1)
        return false;
    memcpy(addr, &in, 4);
    return true;
}

static bool take_port(const char *text, uint16_t *out)
{
    uint64_t port;

    if (parse_u64(text, "port", 1, 65535, &port, NULL) != 0)
        return false;
    *out = (uint16_t)port;
    return true;
}

/* tcp|udp:[HOST-ADDRESS]:PORT-[GUEST-ADDRESS]:PORT */
static int take_forward(const char *rule, struct vm_net *out, struct err *e)
{
    char protocol[PART_MAX], host[PART_MAX], host_port[PART_MAX], guest[PART_MAX],
        guest_port[PART_MAX];
    const char *from = rule;
    struct netdev_forward f = {0};

    if (out->user.forward_count == NETDEV_FORWARDS_MAX)
        return err_set(e, 0, "--net: there can be %u hostfwd rules", NETDEV_FORWARDS_MAX);
    bool is_good = take_until(&from, ':', protocol) && take_until(&from, ':', host) &&
                   take_until(&from, '-', host_port) && take_until(&from, ':', guest) &&
                   take_until(&from, '\0', guest_port);
    is_good = is_good && (strcmp(protocol, "tcp") == 0 || strcmp(protocol, "udp") == 0) &&
              take_addr(host, f.host_addr) && take_port(host_port, &f.host_port) &&
              take_addr(guest, f.guest_addr) && take_port(guest_port, &f.guest_port);
    if (!is_good)
        return err_set(e, 0,
                       "--net: cannot read the rule 'hostfwd=%s'; it has the form "
                       "tcp|udp:[HOST-ADDRESS]:PORT-[GUEST-ADDRESS]:PORT, as in "
                       "hostfwd=tcp:127.0.0.1:2222-:22",
                       rule);
    f.is_udp = protocol[0] == 'u';
    out->user.forwards[out->user.forward_count++] = f;
    return 0;
}

static int take_mac(const char *text, struct vm_net *out, struct err *e)
{
    unsigned at = 0;

    for (const char *p = text; at < 6; p++, at++) {
        unsigned value = 0, digits = 0;
        for (; digits < 2 && strchr("0123456789abcdefABCDEF", *p) != NULL && *p != '\0'; digits++)
            value = value * 16 + (unsigned)(*p <= '9' ? *p++ - '0' : (*p++ | 0x20) - 'a' + 10);
        if (digits != 2 || *p != (at < 5 ? ':' : '\0'))
            break;
        out->mac[at] = (uint8_t)value;
    }
    if (at != 6)
        return err_set(e, 0, "--net: '%s' is no MAC address such as 52:54:00:12:34:56", text);
    if (out->mac[0] & 1)
        return err_set(e, 0, "--net: the MAC address '%s' is one of a group", text);
    out->has_mac = true;
    return 0;
}

static int take_property(const char *part, struct vm_net *out, struct err *e)
{
    static const char *const names[] = {"hostfwd", "restrict", "mac"};
    char name[PART_MAX] = "";

    if (strncmp(part, "hostfwd=", 8) == 0)
        return take_forward(part + 8, out, e);
    if (strncmp(part, "mac=", 4) == 0)
        return take_mac(part + 4, out, e);
    if (strcmp(part, "restrict") == 0) {
        out->user.is_restricted = true;
        return 0;
    }
    memcpy(name, part, MIN(strcspn(part, "="), sizeof(name) - 1));
    const char *near = suggest_nearest(name, names, ARRAY_SIZE(names));
    if (near != NULL)
        return err_set(e, 0, "--net: unknown property '%s'; did you mean '%s'?", part, near);
    return err_set(e, 0, "--net: unknown property '%s' (there are hostfwd=, restrict and mac=)",
                   part);
}

int net_parse(const char *value, struct vm_net *out, struct err *e)
{
    char kind[PART_MAX], part[PART_MAX];
    const char *from = value;

    *out = (struct vm_net){.kind = VM_NET_NONE};
    if (!take_until(&from, ',', kind) && !take_until(&from, '\0', kind))
        return err_set(e, 0, "--net: the value is too long");
    if (strcmp(kind, "user") == 0)
        out->kind = VM_NET_USER;
    else if (strcmp(kind, "none") != 0)
        return err_set(e, 0, "--net: unknown network '%s' (choose from user, none)", kind);
    if (out->kind == VM_NET_NONE && *from != '\0')
        return err_set(e, 0, "--net: none has no properties");
    while (*from != '\0') {
        if (!take_until(&from, ',', part) && !take_until(&from, '\0', part))
            return err_set(e, 0, "--net: '%s' is too long", from);
        int rc = take_property(part, out, e);
        if (rc != 0)
            return rc;
    }
    return 0;
}
