/*
 * segment.h - limit and type checks against any hidden part, loaded or about to be
 */
#ifndef DOPPEL_ENGINE_SOFT_SEGMENT_H
#define DOPPEL_ENGINE_SOFT_SEGMENT_H

#include "engine/soft/vcpu.h"

/* Do the bytes [offset, offset + size) lie within the limit of `s`? (SDM vol. 3, 5.3) */
static inline bool soft_limit_allows(const struct cpu_seg *s, uint64_t offset, unsigned size)
{
    uint64_t last = offset + (size != 0 ? size - 1 : 0);

    if ((s->attr & (SEG_S | SEG_TYPE_CODE | SEG_TYPE_DOWN_CONFORM)) ==
        (SEG_S | SEG_TYPE_DOWN_CONFORM)) {
        uint64_t top = s->attr & SEG_DB ? 0xffffffff : 0xffff;
        return offset > s->limit && last <= top;
    }
    /* no wrapping around at 4 GiB either: the manual leaves that open, processors fault */
    return last <= s->limit;
}

#endif
