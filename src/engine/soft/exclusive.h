/*
 * exclusive.h - making and destroying the lock behind soft_exclusive_* (see vcpu.h)
 */
#ifndef DOPPEL_ENGINE_SOFT_EXCLUSIVE_H
#define DOPPEL_ENGINE_SOFT_EXCLUSIVE_H

#include "base/err.h"

struct soft_exclusive;

int soft_exclusive_create(struct soft_exclusive **out, struct err *e);
void soft_exclusive_destroy(struct soft_exclusive *x);

#endif
