/*
 * client.h - ask a running machine something, over its control socket
 */
#ifndef DOPPEL_CLI_CLIENT_H
#define DOPPEL_CLI_CLIENT_H

#include <jansson.h>

#include "api/rundir.h"
#include "base/err.h"

struct client_answer {
    unsigned status; /* of HTTP */
    json_t *json;    /* an object; json_decref it */
};

/*
 * One request. body is JSON, or NULL for none. timeout_ms bounds the whole of it; -1: wait as
 * long as it takes. 0 when an answer has come that is no error; else -errno, and *e holds what
 * the machine or the host said.
 */
int client_call(const struct rundir_entry *entry, const char *method, const char *path,
                const char *body, int timeout_ms, struct client_answer *out, struct err *e);

#endif
