/*
 * net.c - the value of --net
 */
#include "cli/net.h"

#include <arpa/inet.h>
#include <string.h>
#include <sys/random.h>

#include "base/bits.h"
#include "base/parse.h"
#include "cli/props.h"

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

static int take_mtu(const char *text, struct vm_net *out, struct err *e)
{
    uint64_t mtu;
    int rc = parse_u64(text, "--net: mtu", NETDEV_MTU_MIN, NETDEV_MTU_MAX, &mtu, e);

    if (rc == 0)
        out->mtu = (unsigned)mtu;
    return rc;
}

static int take_queues(const char *text, struct vm_net *out, struct err *e)
{
    uint64_t queues;
    int rc = parse_u64(text, "--net: queues", 1, NETDEV_QUEUES_MAX, &queues, e);

    if (rc == 0)
        out->queues = (unsigned)queues;
    return rc;
}

static int take_property(const char *part, void *ctx, struct err *e)
{
    struct vm_net *out = ctx;
    static const char *const names[] = {"mac", "mtu", "hostfwd", "restrict"};
    static const char *const tap_names[] = {"mac", "mtu", "ifname", "queues"};
    const char *value;

    if ((value = props_value(part, "mac")) != NULL)
        return take_mac(value, out, e);
    if ((value = props_value(part, "mtu")) != NULL)
        return take_mtu(value, out, e);
    if (out->kind == VM_NET_USER && (value = props_value(part, "hostfwd")) != NULL)
        return take_forward(value, out, e);
    if (out->kind == VM_NET_USER && strcmp(part, "restrict") == 0) {
        out->user.is_restricted = true;
        return 0;
    }
    if (out->kind == VM_NET_TAP && (value = props_value(part, "ifname")) != NULL) {
        out->path = value;
        return 0;
    }
    if (out->kind == VM_NET_TAP && (value = props_value(part, "queues")) != NULL)
        return take_queues(value, out, e);
    if (out->kind == VM_NET_TAP)
        return props_unknown("--net", part, tap_names, ARRAY_SIZE(tap_names),
                             "there are ifname=, queues=, mac= and mtu=", e);
    if (out->kind != VM_NET_USER)
        return props_unknown("--net", part, names, 2, "there are mac= and mtu=", e);
    return props_unknown("--net", part, names, ARRAY_SIZE(names),
                         "there are hostfwd=, restrict, mac= and mtu=", e);
}

int net_parse(const char *value, char text[NET_TEXT_SIZE], struct vm_net *out, struct err *e)
{
    char *to = text;

    *out = (struct vm_net){.kind = VM_NET_NONE};
    if (strlen(value) >= NET_TEXT_SIZE)
        return err_set(e, 0, "--net: the value is longer than %u characters", NET_TEXT_SIZE - 1);
    const char *rest = props_take(value, &to);
    if (strcmp(text, "user") == 0)
        out->kind = VM_NET_USER;
    else if (strncmp(text, "socket:", 7) == 0)
        out->kind = VM_NET_SOCKET;
    else if (strcmp(text, "tap") == 0)
        out->kind = VM_NET_TAP;
    else if ((out->path = props_vhost_user(text)) != NULL)
        out->kind = VM_NET_VHOST_USER;
    else if (strcmp(text, "none") != 0)
        return err_set(e, 0,
                       "--net: unknown network '%s' (choose from user, tap, socket:PATH, "
                       "vhost-user:PATH, none)",
                       text);
    if (out->kind == VM_NET_SOCKET)
        out->path = text + 7;
    if (out->path != NULL && out->path[0] == '\0')
        return err_set(e, 0,
                       "--net: the socket's path is missing, as in socket:/run/user/1000/lan");
    if (out->kind == VM_NET_NONE && rest != NULL)
        return err_set(e, 0, "--net: none has no properties");
    return props_each(rest, &to, take_property, out, e);
}

void net_choose_mac(const char *name, struct vm_net *net)
{
    /* FNV-1a; its high bits depend on all of the name */
    uint64_t h = UINT64_C(0xcbf29ce484222325);

    if (net->has_mac || net->kind == VM_NET_NONE || (name == NULL && net->kind == VM_NET_USER))
        return;
    for (const char *p = name; p != NULL && *p != '\0'; p++)
        h = (h ^ (uint8_t)*p) * UINT64_C(0x100000001b3);
    h = (h ^ h >> 32) * UINT64_C(0x9e3779b97f4a7c15);
    if (name == NULL && getrandom(&h, sizeof(h), 0) != sizeof(h))
        return;         /* as without a network that others see */
    net->mac[0] = 0x52; /* locally administered, of nobody's range */
    for (unsigned i = 1; i < 6; i++)
        net->mac[i] = (uint8_t)(h >> (16 + 8 * i));
    net->has_mac = true;
}
