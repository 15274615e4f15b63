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
    /* with a limit of 4 GiB less 1 an access may wrap around; the manual leaves it open */
    return last <= s->limit || (s->limit == 0xffffffff && offset <= 0xffffffff);
}

#endif
