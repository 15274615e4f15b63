/*
 * net.h - the value of --net: none, or user[,hostfwd=RULE...][,restrict][,mac=ADDRESS]
 */
#ifndef DOPPEL_CLI_NET_H
#define DOPPEL_CLI_NET_H

#include "base/err.h"
#include "vm/vm.h"

/* What the parsed strings point into. */
#define NET_TEXT_SIZE 4608

/* Take `value` apart. Returns 0 or -EINVAL. */
int net_parse(const char *value, char text[NET_TEXT_SIZE], struct vm_net *out, struct err *e);

#endif
