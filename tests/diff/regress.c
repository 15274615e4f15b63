/*
 * regress.c - instructions that once differed, run again with other operands at every start
 *
 * Bytes rather than seeds, so that the list outlives changes of the generator.
 */
#include "diff.h"

const struct diff_regression diff_regressions[] = {
    {8, 6, "\x0f\xa5\x6b\xcc\x8b\xff", "SHLD and MOV from itself"},
    {8, 3, "\x4d\x8b\xff", "MOV r15, r15 with r15 in memory"},
    {8, 3, "\x0f\xb6\xcd", "MOVZX ecx, ch"},
    {4, 3, "\x0f\xbe\xcd", "MOVSX ecx, ch"},
    {8, 5, "\x45\x63\xdb\x63\xdb", "MOVSXD r11d, r11d"},
    {8, 3, "\x87\x59\x91", "XCHG across pages: CR2"},
    {8, 5, "\xf0\xf0\x01\x04\x8a", "LOCK ADD across pages: CR2"},
    {4, 6, "\xd8\x66\x07\xd8\x66\x08", "#MF before #PF"},
    {8, 8, "\xdc\x0d\x00\x00\x00\x00\x00\x00", "#MF before #PF"},
    {4, 4, "\x0f\xda\x5d\x08", "MMX: #MF before #PF"},
    {4, 5, "\x66\x0f\x2c\x72\x44", "CVTTPD2PI: alignment"},
    {8, 5, "\x66\x0f\x2d\x4a\x2d", "CVTPD2PI: alignment"},
    {8, 8, "\x62\x53\x1d\x46\x42\x22\x7d\x90", "VDBPSADBW with a mask"},
    {8, 7, "\x62\xd3\xad\x09\xcf\x18\xc2", "VGF2P8AFFINEINVQB with a mask"},
    {4, 3, "\x0f\xf7\xe6", "MASKMOVQ at the end, with an exception pending"},
    {4, 6, "\xc4\xc3\xf9\x61\x50\xeb", "VPCMPESTRI: W outside of 64-bit mode"},
    {8, 3, "\xff\x55\x66", "CALL to what is not canonical"},
    {8, 4, "\xf2\x0f\x01\xfc", "CLZERO with F2"},
    {8, 4, "\x0f\x5d\x6d\xd1", "MINPS: #GP before #SS"},
    {4, 1, "\x61", "POPAD into a missing page"},
    {8, 4, "\xc8\x5a\x00\x00", "ENTER with AC"},
    {8, 2, "\xdf\x36", "FBSTP with AC"},
    {8, 4, "\x4a\x0f\xae\x07", "FXSAVE into a missing page"},
    {8, 2, "\xdd\x22", "FRSTOR from a missing page"},
    {8, 2, "\xd9\x36", "FNSTENV into a missing page"},
    {4, 8, "\x62\xf3\x7d\x2e\x39\x46\x37\x99", "VEXTRACTI32X4 with a mask, AC, missing page"},
    {8, 6, "\xc4\xa2\x1d\x92\x44\xda", "VGATHERDPS with faults"},
    {8, 7, "\x62\xf2\x7d\x29\x90\x44\x8d", "VPGATHERDD with faults"},
    {8, 7, "\x62\xf2\xfd\x4f\xa0\x5c\x8e", "VPSCATTERDQ with faults"},
    {8, 4, "\x4b\xff\x14\xc9", "CALL with nowhere to push and nowhere to go"},
    {4, 4, "\x2e\x0f\xae\x00", "FXSAVE to the code segment with AC"},
    {4, 3, "\x0f\xae\x00", "FXSAVE across the largest offset"},
    {4, 4, "\x36\x0f\xae\x00", "FXSAVE across the largest offset, #SS"},
    {8, 6, "\x62\xd2\x7d\x48\x63\x26", "VPCOMPRESSB without a mask, AC"},
    {8, 6, "\x62\xf2\xfd\x28\x63\x07", "VPCOMPRESSW without a mask, AC"},
    {8, 6, "\x62\xf2\xfd\x08\x8b\x07", "VPCOMPRESSQ without a mask, AC"},
    {8, 15, "\x2e\xf3\xf2\x8f\xca\xbd\x44\x1d\xa9\x29\x00\x00\x00\x00\x00", "XOP: too long"},
    {8, 6, "\xc4\xc2\x6d\x2e\x5a\x08", "VMASKMOVPS with AC"},
};

const unsigned diff_regression_count = sizeof(diff_regressions) / sizeof(diff_regressions[0]);
