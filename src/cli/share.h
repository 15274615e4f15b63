/*
 * share.h - the value of --share: PATH|vhost-user:PATH,tag=NAME[,ro]
 */
#ifndef DOPPEL_CLI_SHARE_H
#define DOPPEL_CLI_SHARE_H

#include "base/err.h"
#include "vm/vm.h"

/* What the parsed strings point into. */
#define SHARE_TEXT_SIZE 4608

/*
 * Take `value` apart. A comma that belongs to the path is written twice. Returns 0 or -EINVAL.
 */
int share_parse(const char *value, char text[SHARE_TEXT_SIZE], struct vm_share *out, struct err *e);

#endif
