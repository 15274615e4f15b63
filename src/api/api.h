/*
 * api.h - the control socket: what a client may ask of a running machine
 *
 * JSON over HTTP; docs/api/openapi.yaml describes every route and field. All of it runs on the
 * main loop's thread, which owns the machine.
 */
#ifndef DOPPEL_API_API_H
#define DOPPEL_API_API_H

#include "base/err.h"

struct api;
struct loop;
struct vm;
struct vm_end;

/* Strings and objects are the caller's and outlive the api. */
struct api_config {
    struct loop *loop;
    struct vm *vm;
    const char *name;   /* NULL: none */
    const char *socket; /* its path, for the status */
    int listen_fd;      /* listening and non-blocking */
};

int api_create(const struct api_config *config, struct api **out, struct err *e);

/* The machine has ended: tell those who wait for that. The loop need not run any more. */
void api_finish(struct api *api, const struct vm_end *end);

/* NULL is allowed. */
void api_destroy(struct api *api);

#endif
