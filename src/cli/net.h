/*
 * net.h - the value of --net: none, user[,hostfwd=RULE...][,restrict][,mac=ADDRESS],
 * tap[,ifname=NAME]..., or socket:PATH...
 */
#ifndef DOPPEL_CLI_NET_H
#define DOPPEL_CLI_NET_H

#include "base/err.h"
#include "vm/vm.h"

/* What the parsed strings point into. */
#define NET_TEXT_SIZE 4608

/* Take `value` apart; a comma that belongs to a path is written twice. Returns 0 or -EINVAL. */
int net_parse(const char *value, char text[NET_TEXT_SIZE], struct vm_net *out, struct err *e);

/*
 * An address for an interface that was given none: the same for every machine of that name on every
 * host. With no name, one that is drawn by lot where others see it.
 */
void net_choose_mac(const char *name, struct vm_net *net);

#endif
